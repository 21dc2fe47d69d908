"""Photographs at their working size, and maps back at the size of the file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weaktr.data import DataError, Sample
from weaktr.data.io import read_rgb
from weaktr.data.photographs import (
    _MemoryBudget,
    enlarged,
    read_photograph,
    reduced,
    working_size,
)


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((375, 500), 1024, (375, 500)),
        ((1024, 1024), 1024, (1024, 1024)),
        ((6000, 8000), 1024, (768, 1024)),
        ((8000, 6000), 1000, (1000, 750)),
        ((1, 1_000_000), 1024, (1, 1024)),
        ((16, 4000), 1024, (4, 1024)),
        ((6000, 8000), None, (6000, 8000)),
    ],
)
def test_working_size(size, max_side, expected):
    assert working_size(size, max_side) == expected


def sample(path):
    return Sample(path.stem, path, None, None, "list:1")


def scene(height, width):
    """A picture of smooth colours with edges."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    colours = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], -1)
    colours[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.04] = (1, -1, 0)
    return (127.5 + 110 * colours).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_small_photographs_are_read_as_ever(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(scene(300, 400)).save(path)
    photograph = read_photograph(sample(path), 1024)
    assert not photograph.is_reduced and photograph.size == (300, 400)
    np.testing.assert_array_equal(photograph.pixels, read_rgb(path))


def test_a_reduced_png_is_the_bicubic_reduction_of_the_whole(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(scene(900, 1600)).save(path)
    photograph = read_photograph(sample(path), 400)
    assert photograph.is_reduced and photograph.size == (900, 1600)
    expected = Image.fromarray(scene(900, 1600)).resize((400, 225), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(photograph.pixels, np.asarray(expected))
    np.testing.assert_array_equal(reduced(read_rgb(path), 400).pixels, photograph.pixels)


@pytest.mark.parametrize("factor", [2.5, 4, 9, 17])
def test_a_jpeg_decoded_at_a_fraction_is_nearly_that(tmp_path, factor):
    """At a half, a quarter or an eighth of its size, then reduced by at least two."""
    path = tmp_path / "a.jpg"
    height, width = int(120 * factor), int(160 * factor)
    Image.fromarray(scene(height, width)).save(path, quality=92)
    photograph = read_photograph(sample(path), 160)
    whole = reduced(read_rgb(path), 160)
    assert photograph.pixels.shape == whole.pixels.shape and photograph.size == (height, width)
    differences = np.abs(photograph.pixels.astype(int) - whole.pixels.astype(int))
    assert differences.mean() < 1.0
    assert np.percentile(differences, 99) <= 8


def test_a_truncated_large_jpeg_is_an_error(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(scene(1200, 1600)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.jpg \(list:1\): cannot be read as an image"):
        read_photograph(sample(path), 200)


def test_labels_are_enlarged_to_the_nearest():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(enlarged(labels, (6, 8)), labels.repeat(2, 0).repeat(2, 1))
    assert enlarged(labels, (3, 4)) is labels
    maps = np.stack([labels, 20 + labels]).astype(np.float32)
    large = enlarged(maps, (7, 5))
    assert large.shape == (2, 7, 5)
    np.testing.assert_array_equal(large[1], 20 + large[0])
    assert large[0, 0, 0] == 0 and large[0, -1, -1] == 11
    assert enlarged(np.ones((1, 1), np.uint8), (2, 1000)).shape == (2, 1000)


def test_memory_for_decoding_is_shared():
    """Who does not fit waits; who is larger than everything waits to be alone."""
    budget, events = _MemoryBudget(100), []
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with budget.room(60):
            events.append("first in")
            inside.set()
            leave.wait(5)
            events.append("first out")

    def want():
        inside.wait(5)
        with budget.room(1000):
            events.append("second in")

    threads = [threading.Thread(target=work) for work in (hold, want)]
    for thread in threads:
        thread.start()
    inside.wait(5)
    with budget.room(40):
        events.append("third in")
    leave.set()
    for thread in threads:
        thread.join(5)
    assert events.index("second in") > events.index("first out")
    assert events.index("third in") < events.index("first out")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="file is missing"):
        read_photograph(sample(Path(tmp_path / "none.jpg")), 100)


def test_hidden_files_and_clutter_are_no_photographs(tmp_path):
    """In folders of one's own, in COCO's, and in archives."""
    from tests.data.prepare.official_archives import jpeg, zipped
    from weaktr.data import unlabelled
    from weaktr.data.layout import IMAGE_SUFFIXES
    from weaktr.data.prepare.unpack import members
    from weaktr.data.sources.coco14 import listed

    names = ("9.jpg", "._9.jpg", ".hidden9.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/9.jpg")
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg(0) if name == "9.jpg" else b"clutter")
    (tmp_path / "in.zip").write_bytes(zipped(dict.fromkeys(names, b"x")))
    assert [sample.name for sample in unlabelled(tmp_path / "in")] == ["9"]
    assert listed(tmp_path / "in", IMAGE_SUFFIXES) == [("9", tmp_path / "in/9.jpg")]
    for place in ("in", "in.zip"):
        assert [member.name for member in members(tmp_path / place)] == ["9.jpg"]


def test_pipes_and_folders_are_not_opened(tmp_path):
    """A pipe without a writer would be waited for without end."""
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match=rf"{name}\.jpg .*: expected a file, got a {name}$"):
            read_photograph(sample(tmp_path / f"{name}.jpg"), None)
