"""Which photograph is meant by a path that was written elsewhere."""

from __future__ import annotations

import pytest

from weaktr.data.label_files import Row
from weaktr.data.tags import places
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
    rows = [Row("a.jpg", ("cat",), ""), Row(" a.jpg", ("dog", "cat"), ""), Row("d/b.jpg", (), "")]
    found = matched(rows, PHOTOGRAPHS)
    assert found.labels == {"a.jpg": ("cat", "dog"), "d/b.jpg": ()}
    rows = [Row("x/a.jpg", ("cat",), ""), Row("x/a.jpg", ("dog",), "")]
    found = matched(rows, PHOTOGRAPHS)
    assert found.labels == {"a.jpg": ("cat", "dog")}
    assert found.otherwise == [("x/a.jpg", "a.jpg")] * 2


@pytest.mark.parametrize("other", ["x/a.jpg", "A.jpg", "a", "0a1b2c3d-a.jpg"])
@pytest.mark.parametrize("exact_first", [True, False])
def test_a_photograph_with_its_own_row_takes_no_other(other, exact_first):
    exact, looser = Row("a.jpg", ("dog",), ""), Row(other, ("cat",), "")
    found = matched([exact, looser] if exact_first else [looser, exact], PHOTOGRAPHS)
    assert found.labels == {"a.jpg": ("dog",)}
    assert (found.missing, found.otherwise) == ([looser], [])


def test_paths_of_one_photograph_whose_labels_differ_are_left_out():
    rows = [Row("x/a.jpg", ("cat",), ""), Row("y/a.jpg", ("dog",), ""), Row("d/b.jpg", (), "")]
    found = matched(rows, PHOTOGRAPHS)
    assert (found.labels, found.disputed) == ({"d/b.jpg": ()}, [("a.jpg", rows[:2])])
    same = [Row("x/a.jpg", ("cat", "dog"), ""), Row("y/a.jpg", ("dog", "cat"), "")]
    assert matched(same, PHOTOGRAPHS).labels == {"a.jpg": ("cat", "dog")}


def test_the_most_of_the_end_counts():
    photographs = [f"{shop}/{n:03}/rgb.jpg" for n in range(20) for shop in ("x", "y")]
    rows = [Row(f"/home/me/set/{path}", (path,), "") for path in photographs]
    assert matched(rows, photographs).labels == {path: (path,) for path in photographs}
    ((_, meant),) = matched([Row("z/007/RGB.jpg", (), "")], photographs).unclear
    assert meant == ["x/007/rgb.jpg", "y/007/rgb.jpg"]


def test_photographs_of_one_file_name_are_looked_at_once(monkeypatch):
    """`weaktr init` has to end with 100,000 photographs ``NUMBER/rgb.jpg``, too."""
    calls, plain = [], places._plain
    monkeypatch.setattr(places, "_plain", lambda text: (calls.append(text), plain(text))[1])
    photographs = [f"{n:03}/rgb.jpg" for n in range(50)]
    found = matched([Row(f"/a/{path}", ("cat",), "") for path in photographs], photographs)
    assert len(found.labels) == 50
    assert len(calls) == 50 + 50 * len(["a", "000", "rgb.jpg"])
