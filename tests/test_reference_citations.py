"""Docstrings cite docs/reference.md by number: every cited point is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("weaktr", "kernels", "configs", "tests", "bench", "docs")
SUFFIXES = {".py", ".yaml", ".md", ".sh"}

NUMBERS = r"\d+(?:-\d+)?"
CITATION = re.compile(rf"reference\.md\s+({NUMBERS}(?:(?:,\s+|\s+and\s+){NUMBERS})*)")
MENTION = re.compile(r"Source:\s+reference\.md")
POINT = re.compile(r"^(\d+)\. ", re.MULTILINE)


def cited_points(text: str) -> list[int]:
    """The points that `text` cites as ``reference.md N``, ``N-M``, ``N, M`` or ``N and M``.

    Raises:
        ValueError: a range that does not rise, or a source without a number.
    """
    points: list[int] = []
    for citation in CITATION.finditer(text):
        for numbers in re.findall(NUMBERS, citation[1]):
            first, _, last = numbers.partition("-")
            if last and int(last) <= int(first):
                raise ValueError(f"reference.md {numbers}: expected a range that rises")
            points.extend(range(int(first), int(last or first) + 1))
    for mention in MENTION.finditer(text):
        if not CITATION.match(text, text.index("reference.md", mention.start())):
            raise ValueError(f"expected a point after {mention[0]!r}")
    return points


def reference_points() -> list[int]:
    return [int(number) for number in POINT.findall((ROOT / "docs/reference.md").read_text())]


def citing_files() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path != Path(__file__):
                yield path


def test_points_are_numbered_from_1_without_a_gap():
    points = reference_points()
    assert points == list(range(1, len(points) + 1))


def test_every_cited_point_exists():
    cited = {path: cited_points(path.read_text()) for path in citing_files()}
    assert any(cited.values())
    known = set(reference_points())
    unknown = {
        str(path.relative_to(ROOT)): sorted(set(points) - known)
        for path, points in cited.items()
        if set(points) - known
    }
    assert not unknown


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("Source: reference.md 23.", [23]),
        ("Source: reference.md 1-3, 21.", [1, 2, 3, 21]),
        ("Source: reference.md 28 and 32 (labels); 4 of 5.", [28, 32]),
        ("Source: reference.md 15,\n    17-18.", [15, 17, 18]),
        ("reference.md 48, 50. And reference.md 2", [48, 50, 2]),
        ("see [the page](reference.md)", []),
    ],
)
def test_citations_are_collected(text, points):
    assert cited_points(text) == points


def test_a_made_up_point_is_noticed():
    assert not set(cited_points("Source: reference.md 999.")) <= set(reference_points())


@pytest.mark.parametrize("text", ["Source: reference.md 9-3.", "Source: reference.md, point 3."])
def test_a_citation_that_cannot_be_followed_is_an_error(text):
    with pytest.raises(ValueError, match="expected"):
        cited_points(text)
