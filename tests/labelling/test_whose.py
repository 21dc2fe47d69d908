"""Whether two inputs are of different photographs."""

from __future__ import annotations

import pytest

from weaktr.data import unlabelled
from weaktr.labelling.whose import are_others


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders, tars, manifests; where we are."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "trip1/a.jpg": "a", "trip1/b.jpg": "b", "trip2/a.jpg": "other", "trip3/z.jpg": "z",
        "copy/a.jpg": "a", "copy/c.jpg": "c", "Trip [1]/a.jpg": "other",
        "labelled/images/a.jpg": "a", "labelled/labels.csv": "image,labels",
        "tars/000.tar": "000", "tars/more/001.tar": "001", "tars/labels.csv": "image,labels",
        "tars/images/notes.txt": "none", "tars2/000.tar": "2",
        "left/labels.csv": "image,labels", "damaged.json": "{",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "link").symlink_to("trip1")
    (tmp_path / "emptied").mkdir()
    for name, root in {"one": "trip1", "same": "trip1", "two": "trip2"}.items():
        unlabelled(tmp_path / root).save(tmp_path / f"{name}.json")
    return tmp_path


@pytest.mark.parametrize(
    ("before", "now", "others"),
    [
        ("trip1", "trip2", True),
        ("trip1", "trip3", True),
        ("trip1", "./trip1/", False),
        ("trip1", "link", False),
        ("trip1", "copy", False),
        ("gone", "trip2", False),
        ("Gone [1]", "trip2", False),
        ("Trip [1]", "trip1", True),
        ("emptied", "trip2", False),
        ("left", "trip2", False),
        ("labelled", "labelled/images", False),
        ("labelled", "trip2", True),
        ("tars", "tars/*.tar", False),
        ("tars/000.tar", "tars/{000..127}.tar", False),
        ("tars/*.tar", "tars/more/*.tar", True),
        ("tars", "tars2/*.tar", True),
        ("gone/*.tar", "tars", False),
        ("one.json", "two.json", True),
        ("one.json", "same.json", False),
        ("one.json", "trip1", False),
        ("trip1", "one.json", False),
        ("one.json", "copy", False),
        ("one.json", "trip2", True),
        ("damaged.json", "trip1", False),
        ("s3://a/x", "s3://a/x/{0..9}.tar", False),
        ("s3://a/x", "s3://b/x", True),
        ("s3://a/x", "tars", False),
    ],
)
def test_what_other_photographs_are(places, before, now, others):
    assert are_others(before, now) == others
    assert are_others(before, str(places / now) if "://" not in now else now) == others
