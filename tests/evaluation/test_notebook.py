"""Masks and CAMs that draw themselves: what is drawn, and that they are plain arrays elsewhere."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from weaktr.data import Sample, palette, read_labels
from weaktr.data.masks import write_mask
from weaktr.evaluation import notebook
from weaktr.evaluation.notebook import Cams, Mask
from weaktr.evaluation.overlay import overlay
from weaktr.seals import is_sealed

HOSTILE = "<script>alert('x')</script>\u202e&"
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
LABELS = np.array([[0, 0, 1, 1, 2, 2, 255, 255]] * 6, np.uint8)


def pictures(text):
    """The pictures in a text of HTML."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_mask_knows_its_names_and_shares():
    mask = Mask(LABELS, IMAGE, ["dog", "cat"])
    quarter = 0.25
    assert mask.labels() == {"background": quarter, "dog": quarter, "cat": quarter, "ignored": 0.25}
    assert list(Mask(LABELS).labels()) == ["background", "class 0", "class 1", "ignored"]
    names = ["background", "ignored"]
    assert list(Mask(LABELS, None, names).labels()) == [
        "(background)", "background", "ignored", "(ignored)",
    ]  # fmt: skip
    np.testing.assert_array_equal(mask.overlay(), overlay(IMAGE, LABELS))
    np.testing.assert_array_equal(mask.overlay(opacity=1)[LABELS == 1], palette()[[1] * 12])


def test_a_mask_is_saved_as_masks_are(tmp_path):
    mask = Mask(LABELS, IMAGE, ["dog", "cat"])
    mask.save(tmp_path / "mask.png")
    mask.save(str(tmp_path / "mask.png"))  # ours, so it may be replaced
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", 3), LABELS)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P"
    assert not is_sealed(tmp_path / "mask.png")  # no command replaces it
    write_mask(tmp_path / "result.png", LABELS)
    mask.save(tmp_path / "result.png")  # a correction
    assert not is_sealed(tmp_path / "result.png")
    (tmp_path / "other.png").write_bytes(b"of the user")
    with pytest.raises(ValueError, match="is there already, and weaktr did not write it"):
        mask.save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"labels: expected uint8 \[H, W\]"):
        mask.astype(np.float32).save(tmp_path / "third.png")
    for name in ("mask.jpg", "mask", "mask.png.tif"):
        with pytest.raises(ValueError, match=rf"{name}: expected a name with .png"):
            mask.save(tmp_path / name)
    mask.save(tmp_path / "upper.PNG")


def test_what_is_computed_of_a_mask_is_plain():
    mask = Mask(LABELS.copy(), IMAGE, ["dog", "cat"])
    plain = [mask + 1, mask == 1, mask[2:, :3], mask[0, 0], np.where(mask == 1, 2, 0), -mask]
    plain += [pickle.loads(pickle.dumps(mask)), mask.max(axis=0), mask[mask > 0]]
    for value in plain:
        assert not isinstance(value, Mask)
    changed = [mask.T, mask.copy(), copy.deepcopy(mask), mask.astype(np.int64), np.unique(mask)]
    for value in changed:
        assert getattr(value, "classes", None) is None
        assert getattr(value, "photograph", None) is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mask)), LABELS)
    np.testing.assert_array_equal(torch.from_numpy(mask).numpy(), LABELS)
    np.testing.assert_array_equal(np.asarray(Image.fromarray(mask)), LABELS)
    mask[mask == 255] = 0
    assert list(mask.labels()) == ["background", "dog", "cat"]
    mask += 1
    assert mask.max() == 3


def test_a_mask_draws_itself_with_its_legend():
    text = Mask(LABELS, IMAGE, [HOSTILE, "cat"])._repr_html_()
    (picture,) = pictures(text)
    assert picture.size == (8, 6)
    assert "<script" not in text and "\u202e" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\\u202e&amp; 25%" in text
    assert "background:#008000" in text and "background:#ffffff" in text  # cat, ignored
    for thing in (Mask(LABELS).astype(int), Mask(LABELS).ravel(), Mask(LABELS[:0])):
        assert thing._repr_html_() is None


def test_pictures_and_legends_are_limited():
    labels = np.arange(254, dtype=np.uint8).repeat(4000).reshape(508, 2000)
    text = Mask(labels, None, [f"c{index}" for index in range(253)])._repr_html_()
    (picture,) = pictures(text)
    assert picture.size == (800, 203)
    assert text.count("white-space:nowrap") == notebook.MOST_NAMES and "and 230 more" in text
    maps = Cams(np.zeros((40, 30, 20), np.float32))
    assert len(pictures(maps._repr_html_())) == notebook.MOST_PICTURES
    assert "and 32 more" in maps._repr_html_()
    assert len(maps._repr_html_()) < 50_000


def test_the_photograph_is_read_when_it_is_drawn(tmp_path):
    path = tmp_path / "a.png"
    sample = Sample("a", path, None, None, "")
    grey = Mask(LABELS, sample).overlay()
    np.testing.assert_array_equal(grey, Mask(LABELS).overlay())  # it is not there
    Image.fromarray(IMAGE).save(path)
    np.testing.assert_array_equal(Mask(LABELS, sample).overlay(), overlay(IMAGE, LABELS))
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(Mask(LABELS, sample).overlay(), grey)


def test_cams_draw_each_class_over_the_photograph():
    maps = np.zeros((2, 6, 8), np.float32)
    maps[1] = 1
    cams = Cams(maps, IMAGE, [HOSTILE, "cat"])
    first, second = pictures(cams._repr_html_())
    assert np.asarray(second).mean() > np.asarray(first).mean() + 50
    assert "<script" not in cams._repr_html_() and "cat" in cams._repr_html_()
    assert cams[0].base is not None and not isinstance(cams[0], Cams)


def test_tables_hold_text():
    head, row = "<tr><th>a</th><th>b</th></tr>", "<tr><td>&lt;b&gt;</td><td>1\\n2</td></tr>"
    assert notebook.table(("a", "b"), [("<b>", "1\n2")]) == f"<table>{head}{row}</table>"
