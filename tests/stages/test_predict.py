"""Masks of images: after the CRF, and of a folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.parity.recipe import GOLDEN, recipe_weight
from tests.stored import FACTS, arrays
from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.masks import MaskFolder
from weaktr.inference.probabilities import for_prediction, probabilities
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


@pytest.mark.parametrize(("preset", "stored"), [("voc_seg", "voc12"), ("coco_seg", "coco")])
def test_crf_after_the_ensemble(model, preset, stored):
    settings = with_(ensemble="published")
    scores = probabilities(for_prediction(model, settings), E["image"], settings)
    refiners = [CrfRefiner(PRESETS[preset])]
    _, refined = masks_from_probabilities(E["image"], scores, refiners)
    assert (refined == CRF[f"{stored}.label"]).mean() >= 0.999


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
