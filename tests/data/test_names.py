"""Lists of names: the line itself first, then what else it may mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.trees import write_list
from weaktr.data.manifest import Sample
from weaktr.data.names import known_names, only, read_names
from weaktr.data.problems import DataError


@pytest.mark.parametrize(
    ("line", "known", "name"),
    [
        ("a", {"a", "a.jpg"}, "a"),
        ("a.jpg", {"a", "a.jpg"}, "a.jpg"),
        ("a.jpg", {"a"}, "a"),
        ("A.JPG", {"A"}, "A"),
        ("my photo", {"my photo", "my"}, "my photo"),
        ("my photo.jpg", {"my photo", "my"}, "my photo"),
        ("my photo", {"my"}, None),
        ("a.jpg and b.jpg", {"a.jpg and b"}, "a.jpg and b"),
        ("a.jpg b.jpg", {"a.jpg b", "a"}, "a.jpg b"),
        ("2008_000123 -1", {"2008_000123"}, None),
        ("/JPEGImages/b.jpg /SegmentationClassAug/b.png", {"b"}, "b"),
        ("/JPEGImages/b.jpg /SegmentationClassAug/b.png", {"b", "JPEGImages/b"}, "JPEGImages/b"),
        ("x/y/b.jpg", {"y/b", "b"}, "y/b"),
        ("x/b", {"b"}, None),
        ("x\\b", {"x/b"}, "x/b"),
        ("x\\b", {"x/b", "x\\b"}, "x\\b"),
        ("cam1_0001", {"cam2_0001", "0001"}, None),
        ("B", {"b"}, None),
    ],
)
def test_the_most_literal_reading_that_is_known(line: str, known: set[str], name: str) -> None:
    assert known_names([line], known) == [line if name is None else name]


def test_paths_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "weaktr")
    known_names(["a.jpg", "b.jpg", "c"], {"a", "b", "c"})
    assert caplog.messages == ["names: 2 lines are paths, such as 'a.jpg', read as 'a'"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["/JPEGImages/a.jpg /Masks/a.png", "/JPEGImages/k/b.jpg"], None),
        (["x/k/a.jpg", "x\\b.jpg"], None),
        (["x/k/b.jpg", "lost/a.jpg"], "'x/k/b.jpg' as 'k/b', 'lost/a.jpg' as 'a'"),
        (["b.jpg", "lost/a.jpg"], "'b.jpg' as 'b', 'lost/a.jpg' as 'a'"),
        (["a", "lost/k/b.jpg", "gone/c.jpg"], "'a' as 'a', 'lost/k/b.jpg' as 'k/b'"),
        (["a", "b", "gone/c.jpg"], None),
    ],
)
def test_folders_left_out_before_names_are_the_same(
    caplog: pytest.LogCaptureFixture, lines: list[str], told: str | None
) -> None:
    caplog.set_level("WARNING", "weaktr")
    known_names(lines, {"a", "b", "k/a", "k/b"})
    message = f"names: the folders left out before names differ: read were {told}"
    assert caplog.messages == ([] if told is None else [message])


def test_two_lines_that_mean_the_same() -> None:
    with pytest.raises(ValueError, match=r"names: 'a' and 'x/a\.jpg' both mean 'a'"):
        known_names(["a", "x/a.jpg"], {"a"})


def test_names_without_image_are_counted() -> None:
    samples = [Sample("a", Path("a.jpg"), None, None, "")]
    with pytest.raises(ValueError) as caught:
        only(samples, ["a", *map(str, range(200_000))])
    told = "names: 200000 of 200001 have no image: 0, 1, 2, 3, 4 and 199,995 more"
    assert str(caught.value) == told


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffa\u2028b\r\n\n c\x85d\x1ce \n".encode())
    assert read_names(path) == ["a\u2028b", "c\x85d\x1ce"]


@pytest.mark.parametrize("line", ["../a", "a/../../b", "a\\..\\b", "/x/../a.jpg /y/a.png"])
def test_lines_that_lead_out(tmp_path: Path, line: str) -> None:
    path = write_list(tmp_path / "names.txt", ["a", line])
    with pytest.raises(DataError, match=r"names\.txt:2\): expected a name without '\.\.'"):
        read_names(path)
