"""Which photograph is meant by a path that was written elsewhere."""

from __future__ import annotations

import pytest

from weaktr.data.label_files import Row
from weaktr.data.tags.places import matched

PHOTOGRAPHS = ["a.jpg", "d/b.jpg", "e/b.jpg", "d/É x.JPG", "deadbeef-c.jpg", "k.l/m.png"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a.jpg", "a.jpg"),
        (" a.jpg ", "a.jpg"),
        ("C:\\my photos\\a.jpg", "a.jpg"),
        ("/home/me/images/d/b.jpg", "d/b.jpg"),
        ("../../e/b.jpg", "e/b.jpg"),
        ("A.JPG", "a.jpg"),
        ("a", "a.jpg"),
        ("d/e\u0301 x.jpg", "d/É x.JPG"),
        ("/data/upload/3/0a1b2c3d-a.jpg", "a.jpg"),
        ("deadbeef-c.jpg", "deadbeef-c.jpg"),
        ("m.png", "k.l/m.png"),
    ],
)
def test_what_is_meant(written, meant):
    found = matched([Row(written, ("cat",), "")], PHOTOGRAPHS)
    assert found.labels == {meant: ("cat",)}
    assert (found.missing, found.unclear) == ([], [])


@pytest.mark.parametrize("written", ["", "..", "/", "z.jpg", "a.png", "/etc/passwd"])
def test_what_means_nothing_is_missing(written):
    assert [row.image for row in matched([Row(written, (), "")], PHOTOGRAPHS).missing] == [written]


def test_what_may_be_several_is_left_out():
    ((row, meant),) = matched([Row("z/b.jpg", (), "")], PHOTOGRAPHS).unclear
    assert (row.image, meant) == ("z/b.jpg", ["d/b.jpg", "e/b.jpg"])


def test_labels_of_several_rows_add_up():
    rows = [Row("a.jpg", ("cat",), ""), Row("x/a.jpg", ("dog", "cat"), ""), Row("d/b.jpg", (), "")]
    found = matched(rows, PHOTOGRAPHS)
    assert found.labels == {"a.jpg": ("cat", "dog"), "d/b.jpg": ()}
    assert found.otherwise == [("x/a.jpg", "a.jpg")]
