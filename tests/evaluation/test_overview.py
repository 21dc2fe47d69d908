"""The table of a folder of masks."""

from __future__ import annotations

import io

import pytest

from weaktr.evaluation import overview
from weaktr.progress import PlainConsole


@pytest.fixture
def printed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(overview, "console", PlainConsole(file=stream, soft_wrap=True, width=80))
    return stream


def rows(text):
    """The cells of the table's rows."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.mark.parametrize(
    ("count", "drawn"),
    [(1, "a"), (2, "ae"), (5, "abdfh"), (8, "abcdefgh"), (9, "abcdefghi"), (99, "abcdefghi")],
)
def test_some_of_many_are_spread_over_all(count, drawn):
    assert "".join(overview.spread("abcdefghi", count)) == drawn
    assert overview.spread("", count) == []


def test_the_most_frequent_classes_come_first_and_missing_ones_are_counted(printed):
    names = ["background", "cat", "dog", *(f"n{k}" for k in range(7)), "owl"]
    overview.print_labels({0: 7, 1: 2, 2: 8, 10: 2}, names, 8)
    text = printed.getvalue()
    assert rows(text) == [
        ["dog", "8", "100%"],
        ["background", "7", "88%"],
        ["cat", "2", "25%"],
        ["owl", "2", "25%"],
    ]
    assert text.splitlines()[-1] == "7 classes are in no mask: n0, n1, n2, n3, n4 and 2 more"


def test_where_all_classes_occur_nothing_is_missing(printed):
    overview.print_labels({1: 2}, ["background", "cat"], 2)
    assert rows(printed.getvalue()) == [["cat", "2", "100%"]]
    assert "in no mask" not in printed.getvalue()
