"""`DenseCRF`: settings that are kept; one image, lists, batches; what a recipe may say."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ops.crf_reference import random_problem
from weaktr.ops import dense_crf, dense_crf_labels, unary_from_labels
from weaktr.ops.dense_crf.definition import position_lattice
from weaktr.ops.dense_crf.presets import PRESETS, DenseCRF, release_memory
from weaktr.refine.crf import choose_crf

DOCS = Path(__file__).parents[2] / "docs"
IMAGE, UNARY = random_problem(8, 11, 3)
LABELS = UNARY.argmin(0)
SETTINGS = {"gaussian": (2, 3), "bilateral": (20, (9, 10, 11), 4), "iterations": 3}
CRF = DenseCRF(**SETTINGS, normalization="before")


def test_one_image():
    expected = dense_crf(IMAGE, UNARY, **SETTINGS, normalization="before")
    assert np.array_equal(CRF(IMAGE, UNARY), expected)
    assert np.array_equal(CRF(IMAGE, UNARY, num_threads=1, backend="torch"),
                          dense_crf(IMAGE, UNARY, **SETTINGS, normalization="before",
                                    backend="torch"))  # fmt: skip


@pytest.mark.parametrize("way", ["auto", "torch"])
@pytest.mark.parametrize("switch", ["float64", "float16", "meta", "autocast"])
def test_what_the_program_has_told_torch_changes_nothing(way, switch):
    def results():
        return (
            CRF(IMAGE, UNARY, backend=way),
            CRF.refine_labels(IMAGE, LABELS, 3, zero_unsure=True, backend=way),
            CRF.refine_probabilities(IMAGE, np.exp(UNARY.min() - UNARY), backend=way),
        )

    expected = results()
    if switch.startswith("float"):
        torch.set_default_dtype(getattr(torch, switch))
    try:
        with (
            torch.device("meta" if switch == "meta" else "cpu"),
            torch.autocast("cpu", torch.bfloat16, enabled=switch == "autocast"),
        ):
            got = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for own, other in zip(got, expected, strict=True):
        assert np.array_equal(own, other)


def test_lists_and_batches():
    small = IMAGE[:4, :5], UNARY[:2, :4, :5]
    listed = CRF([IMAGE, small[0]], [UNARY, small[1]])
    assert [marginals.shape for marginals in listed] == [(3, 8, 11), (2, 4, 5)]
    images, unaries = np.stack([IMAGE, IMAGE[::-1]]), np.stack([UNARY, UNARY * 2])
    batch = CRF(images, unaries)
    assert batch.shape == (2, 3, 8, 11)
    for i in range(2):
        np.testing.assert_allclose(batch[i], CRF(images[i], unaries[i]), rtol=0, atol=1e-6)
    tensors = CRF(torch.from_numpy(images), torch.from_numpy(unaries))
    assert isinstance(tensors, torch.Tensor)
    assert np.array_equal(tensors.numpy(), batch)


def test_without_an_image():
    crf = DenseCRF(gaussian=(2, 3))
    assert np.array_equal(crf(None, UNARY), dense_crf(None, UNARY, gaussian=(2, 3)))


def test_batches_that_do_not_fit():
    with pytest.raises(ValueError, match=r"image: expected a batch of at least one image"):
        CRF(np.zeros((0, 4, 5, 3), np.uint8), np.zeros((0, 2, 4, 5)))
    with pytest.raises(ValueError, match=r"image: expected a list of 3"):
        CRF(IMAGE[None], np.stack([UNARY] * 3))
    with pytest.raises(ValueError, match=r"image 1 of 2: unary: expected finite"):
        CRF(np.stack([IMAGE] * 2), np.stack([UNARY, UNARY * np.inf]))


def test_refine_probabilities():
    unary = unary_from_labels(LABELS, 3)
    expected = CRF(IMAGE, unary)
    probs = np.exp(-unary.astype(np.float64))
    np.testing.assert_allclose(CRF.refine_probabilities(IMAGE, probs), expected, rtol=0, atol=1e-5)
    (listed,) = CRF.refine_probabilities([IMAGE], [probs])
    np.testing.assert_allclose(listed, expected, rtol=0, atol=1e-5)
    batch = CRF.refine_probabilities(IMAGE[None], probs[None])
    np.testing.assert_allclose(batch[0], expected, rtol=0, atol=1e-5)


def test_refine_labels():
    settings = SETTINGS | {"normalization": "before", "gt_prob": 0.6, "confidence": True}
    expected = dense_crf_labels(IMAGE, LABELS, 3, **settings)
    actual = CRF.refine_labels(IMAGE, LABELS, 3, gt_prob=0.6, confidence=True)
    assert all(np.array_equal(*pair) for pair in zip(actual, expected, strict=True))
    assert np.array_equal(CRF.refine_labels(IMAGE, LABELS, 3, gt_prob=0.6), expected[0])
    (listed,) = CRF.refine_labels([IMAGE], [LABELS], [3], gt_prob=0.6)
    assert np.array_equal(listed, expected[0])
    batch, confidence = CRF.refine_labels(
        IMAGE[None], LABELS[None], 3, gt_prob=0.6, confidence=True
    )
    assert batch.shape == confidence.shape == (1, 8, 11)
    assert np.array_equal(batch[0], expected[0])


def test_refine_labels_with_unknown_pixels():
    known = CRF.refine_labels(IMAGE, LABELS, 3)
    assert np.array_equal(CRF.refine_labels(IMAGE, LABELS + 1, 3, zero_unsure=True), known)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gaussian": (0, 3)}, r"gaussian: expected sxy"),
        ({"bilateral": (3, 3)}, r"bilateral: expected a tuple \(sxy, srgb, compat\)"),
        ({"iterations": -1}, r"iterations: expected 0 or more"),
        ({"normalization": "full"}, r"normalization: expected one of"),
        ({"iterations": True}, r"iterations: expected 0 or more, got True"),
        ({"iterations": 2**40}, r"iterations: expected at most 10000, got 1099511627776"),
        ({"gaussian": (3, float("nan"))}, r"gaussian: expected a finite compat, got nan"),
        ({"gaussian": (3, 1e300)}, r"gaussian: expected a finite compat, got 1e\+300"),
        ({"gaussian": (3, "3")}, r"gaussian: expected compat as numbers, got '3'"),
        ({"gaussian": (3, None)}, r"gaussian: expected compat as numbers, got None"),
        ({"gaussian": ("3", 3)}, r"gaussian: expected sxy as one positive number"),
        ({"gaussian": (1e300, 3)}, r"gaussian: expected sxy as one positive number"),
        ({"gaussian": (1e-300, 3)}, r"gaussian: expected sxy as one positive number"),
        ({"bilateral": (3, -5, 3)}, r"bilateral: expected srgb as one positive number"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**arguments)


def test_presets():
    assert set(PRESETS) == {"voc_cam", "coco_cam", "voc_seg", "coco_seg"}
    assert DenseCRF.preset("coco_cam") == DenseCRF(gaussian=(3, 3), bilateral=(50, 5, 10))
    with pytest.raises(ValueError, match=r"crf: expected one of coco_cam, .*; got 'voc'"):
        DenseCRF.preset("voc")


def test_memory_is_released():
    DenseCRF(gaussian=(2, 3))(None, UNARY, backend="torch")
    assert position_lattice.cache_info().currsize > 0
    release_memory()
    assert position_lattice.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("setting", "crf"),
    [
        (None, None),
        ("none", None),
        ("voc_seg", PRESETS["voc_seg"]),
        ({"gaussian": [3, 2], "bilateral": None}, DenseCRF(gaussian=(3, 2))),
        (
            {"bilateral": [[12, 13], [1, 2, 3], 8], "iterations": 5, "normalization": "after"},
            DenseCRF(bilateral=([12, 13], [1, 2, 3], 8), iterations=5, normalization="after"),
        ),
    ],
)
def test_recipes(setting, crf):
    assert choose_crf(setting) == crf


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("voc", r"crf: expected one of coco_cam, .*, none, or explicit settings; got 'voc'"),
        ({"gauss": [3, 3]}, r"crf: unknown key 'gauss'; known here: gaussian, bilateral"),
        ({"gaussian": [3]}, r"crf: gaussian: expected a tuple \(sxy, compat\)"),
        ({"gaussian": "wide"}, r"crf: gaussian: expected a tuple"),
        ({"iterations": "five"}, r"crf: iterations: expected 0 or more, got 'five'"),
        (
            {"gaussian": [1e-5, 3]},
            r"gaussian: expected sxy as one number or 2, from 0.01 to 100000",
        ),
        ({"gaussian": [[3, 1e30], 3]}, r"gaussian: expected sxy as one number or 2, from 0.01"),
        ({"gaussian": [[3, 3, 3], 5]}, r"gaussian: expected sxy as one number or 2, .*\[3, 3, 3\]"),
        ({"bilateral": [3, 1e30, 3]}, r"bilateral: expected srgb as one number or 3, from 0.01"),
        ({"gaussian": [3, 0]}, r"gaussian: expected compat as one number above 0 .*, got 0"),
        ({"gaussian": [3, -3]}, r"gaussian: expected compat as one number above 0 .*, got -3"),
        ({"gaussian": [3, 1e38]}, r"gaussian: expected compat as one number above 0 and at most"),
        ({"gaussian": [3, [1, 2]]}, r"gaussian: expected compat as one number .*, got \[1, 2\]"),
    ],
)
def test_bad_recipes(setting, message):
    with pytest.raises(ValueError, match=message):
        choose_crf(setting)


# ---- docs/crf.md --------------------------------------------------------------------------------


def test_code_of_the_page_runs():
    text = (DOCS / "crf.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 6
    rng = np.random.default_rng(0)
    names = {
        "image": IMAGE, "label_map": LABELS, "other": IMAGE[:4], "other_map": LABELS[:4] % 2,
        "unary": UNARY, "probabilities": np.exp(-unary_from_labels(LABELS, 3)),
        "volume": rng.normal(size=(3, 4, 5)) * 30, "volume_unary": rng.normal(size=(2, 3, 4, 5)),
    }  # fmt: skip
    for block in blocks:
        exec(compile(block, "crf.md", "exec"), names)
    assert [mask.shape for mask in names["masks"]] == [(8, 11), (4, 11)]
    assert np.array_equal(names["marginals"], PRESETS["voc_seg"](IMAGE, UNARY))


def test_presets_of_the_page():
    text = (DOCS / "crf.md").read_text(encoding="utf-8")
    for name, crf in PRESETS.items():
        assert re.search(rf"\| `{name}` \|.*\| {re.escape(str(crf.gaussian))} \| "
                         rf"{re.escape(str(crf.bilateral))} \|", text)  # fmt: skip


def test_picture_of_the_page(tmp_path):
    path = tmp_path / "effect.png"
    runpy.run_path(str(DOCS / "crf_effect.py"))["main"](path)
    for picture in (path, DOCS / "crf_effect.png"):
        assert picture.stat().st_size < 300_000
    with Image.open(path) as drawn, Image.open(DOCS / "crf_effect.png") as kept:
        assert drawn.size == kept.size
