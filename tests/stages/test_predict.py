"""Sliding-window inference against the published code (mmseg, OpenCV)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file

from tests.models import small
from tests.parity.recipe import GOLDEN, recipe_weight
from tests.stages.stored import FACTS, arrays
from tests.tolerances import assert_close, assert_golden
from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.masks import MaskFolder
from weaktr.inference.probabilities import for_ensemble, for_prediction, probabilities
from weaktr.inference.resize import resize_bilinear
from weaktr.inference.windows import anchors, merge, views
from weaktr.models.released.state_dicts import segmenter_from_published
from weaktr.ops.dense_crf.presets import PRESETS
from weaktr.refine.crf import CrfRefiner
from weaktr.stages.predict import masks_from_probabilities, predict

E = arrays("E_inference")
CRF = load_file(GOLDEN / "E_crf.safetensors")
FACT = FACTS["E_inference"]
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PUBLISHED = PredictConfig(
    short_side=52, ratios=RATIOS, window=48, stride=32, ensemble="plain", crf=None
)


@pytest.fixture(scope="module")
def model():
    state = {k: recipe_weight(k, shape, 201) for k, shape in FACT["state_dict"].items()}
    return segmenter_from_published(
        state,
        encoder_heads=6,
        decoder_heads=2,
        decoder="mask_transformer",
        patch_size=16,
        image_size=48,
    ).eval()


def with_(settings=PUBLISHED, **changes):
    return replace(settings, **changes)


@pytest.mark.parametrize("ratio", RATIOS)
def test_resizing_is_opencvs_to_the_bit(ratio):
    expected = E[f"ms_im_u8.{ratio}"]
    made = resize_bilinear(E["image"], *expected.shape[:2])
    np.testing.assert_array_equal(made, expected)


def test_resizing_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize_bilinear(E["image"], 75, 100), E["image"])


def test_resizing_refuses_other_types():
    with pytest.raises(ValueError, match=r"image: expected uint8 \[H, W, C\], got float64"):
        resize_bilinear(np.zeros((4, 4, 3)), 2, 2)


@pytest.mark.parametrize("ratio", RATIOS)
def test_windows_stand_where_published(ratio):
    facts = FACT["windows"][str(ratio)]
    height, width = facts["resized"]
    corners = [[y, x] for y in anchors(height, 48, 32) for x in anchors(width, 48, 32)]
    assert corners == facts["anchors"]


@pytest.mark.parametrize("window_batch", [1, 2, 7])
def test_multi_scale_probabilities(model, window_batch):
    settings = with_(window_batch=window_batch)
    made = probabilities(for_prediction(model, settings), E["image"], settings)
    assert_golden(torch.from_numpy(made), torch.from_numpy(E["prob.multi_scale"]))


@pytest.mark.parametrize("ensemble", ["plain", "published"])
def test_any_batch_of_windows_gives_the_same(model, ensemble):
    """Windows of several scales and flips in one forward pass.

    To a few roundings: several threads cut larger batches into other pieces.
    """
    one, *others = (
        probabilities(for_prediction(model, settings), E["image"], settings)
        for settings in (with_(window_batch=count, ensemble=ensemble) for count in (1, 2, 7, 64))
    )
    for other in others:
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(other.argmax(0), one.argmax(0))


def test_merging_is_upsampling_averaging_and_resizing():
    """`merge` against the steps that it joins, on a window that cuts its last patches."""
    patch, window, size = 8, 20, (33, 47)
    (view, mirrored) = views(
        E["image"], ((0.5,) * 3, (0.5,) * 3),
        with_(short_side=36, ratios=(1.0,), window=window, stride=7), torch.device("cpu"),
    )  # fmt: skip
    logits = torch.randn(len(view.tops) * len(view.lefts), 2, 3, 3, 3)
    total = torch.zeros(2, 3, *view.pixels.shape[1:])
    count = torch.zeros(view.pixels.shape[1:])
    places = [(top, left) for top in view.tops for left in view.lefts]
    for (top, left), one in zip(places, logits, strict=True):
        full = F.interpolate(one, size=(24, 24), mode="bilinear")[..., :window, :window]
        total[..., top : top + window, left : left + window] += full
        count[top : top + window, left : left + window] += 1
    expected = F.interpolate(total / count, size=size, mode="bilinear")
    assert len(places) > 4
    assert_close(merge(view, logits, patch, window, size), expected, "float32")
    assert_close(merge(mirrored, logits, patch, window, size), expected.flip(-1), "float32")


def test_single_scale_probabilities(model):
    made = probabilities(model, E["image"], with_(ratios=(1.0,), flip=False))
    expected = torch.from_numpy(E["prob.single_scale"])
    assert_golden(torch.from_numpy(made)[:, ::2, ::2], expected)


def test_published_ensemble(model):
    settings = with_(ensemble="published", window_batch=2)
    made = probabilities(for_prediction(model, settings), E["image"], settings)
    early = (made - E["prob.multi_scale"]) / 0.8
    assert_golden(
        torch.from_numpy(early)[:, ::2, ::2],
        torch.from_numpy(E["prob.multi_scale_multimask_p1"]),
    )
    assert_golden(torch.from_numpy(made[E["process_batch.keys"]]), torch.from_numpy(CRF["prob"]))
    np.testing.assert_array_equal(made.argmax(0), E["process_batch.pred"])
    np.testing.assert_array_equal(np.unique(made.argmax(0)), E["process_batch.keys"])


@pytest.mark.parametrize(("preset", "stored"), [("voc_seg", "voc12"), ("coco_seg", "coco")])
def test_crf_after_the_ensemble(model, preset, stored):
    settings = with_(ensemble="published")
    scores = probabilities(for_prediction(model, settings), E["image"], settings)
    refiners = [CrfRefiner(PRESETS[preset])]
    _, refined = masks_from_probabilities(E["image"], scores, refiners)
    assert (refined == CRF[f"{stored}.label"]).mean() >= 0.999


def test_the_ensemble_needs_a_mask_transformer():
    linear = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs a mask transformer, got 'linear'"):
        for_ensemble(linear, "published")


def test_masks_of_plain_images(model, tmp_path):
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(E["image"][:, : 90 - index]).save(paths[-1])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    samples = [Sample(p.stem, p, None, None, str(tmp_path)) for p in (*paths, broken)]
    settings = with_(ratios=(1.0,), ensemble="published", crf="voc_seg")
    unreadable = predict(model, samples, tmp_path / "out", settings)
    masks = MaskFolder(tmp_path / "out")
    assert [problem.file for problem in unreadable] == [str(broken)]
    assert masks.entries["0"].size == (75, 90)
    assert masks.read("1").shape == (75, 89)
    made = masks.path("0").stat().st_mtime_ns
    predict(model, samples[:2], tmp_path / "out", settings)
    assert masks.path("0").stat().st_mtime_ns == made
