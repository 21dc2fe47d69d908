"""Statistics of an index: exact, and the same in whatever parts they are counted."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.shards.made import failed, labelled, mask_of, without
from weaktr.shards.rows import Row, table_of
from weaktr.shards.statistics import KINDS, OTHER, added, kind_of, statistics_of

NOTHING = {"images": 0, "billionths": 0, "mean": None}


def test_they_are_these():
    rows = [
        labelled("a", "s", confidence={0: 0.9, 1: 0.25}),
        labelled("b", "s", mask_of(1, 255), confidence={1: 0.75, 3: 0.5}, mask_bytes=7),
        without("c", "s"),
        failed("d", "s", "s/d.jpg: cannot be read as an image: cut off at 12"),
        failed("e", "s", "d.jpg: cannot be read as an image: bad"),
    ]
    size = rows[0].mask_bytes
    assert size is not None
    statistics = statistics_of(table_of(rows))
    assert statistics == {
        "images": 5,
        "status": {"labelled": 2, "no class": 1, "failed": 2, "edited": 0},
        "masks": 2,
        "bytes": size + 7,
        "pixels": 40,
        "labels": {
            "0": {
                "images": 2,
                "area": {"images": 2, "billionths": 10**9, "mean": 0.5},
                "confidence": {"images": 1, "billionths": 9 * 10**8, "mean": 0.9},
            },
            "1": {
                "images": 2,
                "area": {"images": 2, "billionths": 5 * 10**8, "mean": 0.25},
                "confidence": {"images": 2, "billionths": 10**9, "mean": 0.5},
            },
            "2": {
                "images": 1,
                "area": {"images": 1, "billionths": 25 * 10**7, "mean": 0.25},
                "confidence": NOTHING,
            },
            "255": {
                "images": 1,
                "area": {"images": 1, "billionths": 25 * 10**7, "mean": 0.25},
                "confidence": NOTHING,
            },
        },
        "errors": {
            "cannot be read as an image": {
                "images": 1,
                "example": "s/d.jpg: cannot be read as an image: cut off at 12",
            },
            "d.jpg": {"images": 1, "example": "d.jpg: cannot be read as an image: bad"},
        },
    }
    assert json.loads(json.dumps(statistics)) == statistics


def test_labels_of_a_few_pixels_do_not_count_as_shown():
    row = labelled("a", "s", areas={0: 0.998, 1: 0.0009, 2: 0.001}, labels=(0, 1, 2))
    assert statistics_of(table_of([row]))["labels"].keys() == {"0", "2"}


def test_where_areas_are_not_known_all_labels_count():
    row = labelled("a", "s", areas=None, labels=(0, 254, 255), confidence={254: 0.5, 3: 0.5})
    labels = statistics_of(table_of([row]))["labels"]
    assert labels.keys() == {"0", "254", "255"}
    assert labels["254"] == {
        "images": 1,
        "area": NOTHING,
        "confidence": {"images": 1, "billionths": 5 * 10**8, "mean": 0.5},
    }


def test_numbers_that_are_none_do_not_spoil_the_mean():
    rows = [labelled(str(i), "s", confidence={1: c}) for i, c in enumerate((0.5, float("nan")))]
    assert statistics_of(table_of(rows))["labels"]["1"]["confidence"]["mean"] == 0.5


def test_of_no_rows():
    statistics = statistics_of(table_of([]))
    assert statistics["images"] == 0 and statistics["labels"] == statistics["errors"] == {}
    assert added([]) == statistics == added([statistics])


@pytest.mark.parametrize("label", [-1, 256])
def test_labels_that_no_mask_holds_are_refused(label):
    row = labelled("a", "s", areas={label: 1.0}, labels=(0,))
    with pytest.raises(ValueError, match=rf"expected labels 0\.\.255, got {label}"):
        statistics_of(table_of([row]))


def many(count: int) -> list[Row]:
    draw = random.Random(0)
    rows = []
    for index in range(count):
        labels = sorted(draw.sample(range(256), 3))
        row = labelled(str(index), "s", areas={label: draw.random() / 3 for label in labels})
        row = replace(row, labels=tuple(labels), confidence={i: draw.random() for i in labels})
        rows.append(row if index % 7 else failed(str(index), "s", f"error of kind {index % 2}"))
    return rows


def test_parts_added_are_exactly_the_whole():
    rows = many(200)
    whole = statistics_of(table_of(rows))
    parts = [statistics_of(table_of(rows[a:b])) for a, b in ((0, 3), (3, 3), (3, 150), (150, 200))]
    assert added(parts) == whole
    assert added([added(parts[2:]), *parts[:2]])["labels"] == whole["labels"]


def test_slices_and_chunks_count_like_tables_of_their_own():
    rows = many(60)
    table = pa.concat_tables([table_of(rows[:25]), table_of(rows[25:])])
    assert statistics_of(table.slice(20, 30)) == statistics_of(table_of(rows[20:50]))


def test_of_many_kinds_of_errors_the_last_count_together():
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(KINDS + 5)]
    errors = statistics_of(table_of([failed(word, "s", f"{word} is bad") for word in words]))[
        "errors"
    ]
    assert len(errors) == KINDS
    assert errors[OTHER] == {"images": 6, "example": f"{words[KINDS - 1]} is bad"}
    assert list(errors)[-1] == OTHER


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("cut off", "cut off"),
        ("shards/0.tar/a.jpg: expected 8 bits: got 16", "expected # bits"),
        ("a.jpg: file is missing", "file is missing"),
        ("a.jpg (list.txt:12): file is missing", "file is missing"),
        ("a: b", "a"),
        ("x\ny: z", "x\\ny"),
        ("", ""),
    ],
)
def test_errors_count_under_their_words(error, kind):
    assert kind_of(error, ("name", "a.jpg")) == kind


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"status": {}},
        {"labels": {"x": 1}},
        {"labels": {"999": {}}},
        {"errors": []},
    ],
)
def test_damaged_ones_are_refused(change):
    whole = statistics_of(table_of([labelled("a", "s")]))
    with pytest.raises(ValueError, match="statistics: damaged"):
        added([whole | change])


def test_masks_of_billions_of_pixels_are_counted():
    rows = [labelled(str(i), "s", height=100_000, width=100_000) for i in range(3)]
    assert statistics_of(table_of(rows))["pixels"] == 3 * 10**10
    assert isinstance(statistics_of(table_of(rows))["bytes"], int)
    assert np.iinfo(np.int64).max > 10**9 * 10**9
