"""Masks of images: after the CRF, and of a folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.inference.published import E, inputs_of, segmenter, settings_of
from tests.parity.recipe import GOLDEN
from weaktr.config import PropagationConfig
from weaktr.data import Sample
from weaktr.data.masks import MaskFolder
from weaktr.inference.predictions import Predictor
from weaktr.inference.probabilities import patch_features
from weaktr.refine import Maps
from weaktr.refine.propagation import PropagationRefiner
from weaktr.stages.predict import predict

CRF = load_file(GOLDEN / "E_crf.safetensors")


@pytest.fixture(scope="module")
def model():
    return segmenter()


@pytest.mark.parametrize(("preset", "stored"), [("voc_seg", "voc12"), ("coco_seg", "coco")])
def test_crf_after_the_ensemble(model, preset, stored):
    settings = settings_of(ensemble="published")
    predictor = Predictor(model, replace(settings, crf=preset))
    (result,) = predictor.label_maps([inputs_of(E["image"], settings)])
    assert (result.mask() == CRF[f"{stored}.label"]).mean() >= 0.999


def test_propagation_works_on_the_encoders_features(model):
    """Among the labels that occur, which are compact for the refiner."""
    settings = settings_of(ratios=(1.0,), refiners=({"propagation": {"alpha": 0.6}},))
    predictor, one = Predictor(model, settings), inputs_of(E["image"], settings)
    (scores,) = predictor.probabilities([one])
    plain = scores.argmax(0)
    present = plain.unique()
    maps = Maps(
        torch.searchsorted(present, plain).to(torch.uint8),
        len(present),
        scores[present],
        features=patch_features(predictor.model, one, settings),
    )
    (refined,) = PropagationRefiner(PropagationConfig(alpha=0.6), 0.7)([one.image], [maps])
    (result,) = predictor.label_maps([one])
    assert np.array_equal(result.mask("plain"), plain)
    assert np.array_equal(result.mask(), present[refined.labels.long()])
    assert (result.mask() != result.mask("plain")).any()


@pytest.mark.parametrize(("ensemble", "total"), [("plain", 1), ("published", 1.8)])
def test_the_confidence_is_a_probability(model, ensemble, total):
    settings = settings_of(ratios=(1.0,), flip=False, ensemble=ensemble)
    predictor, one = Predictor(model, settings), inputs_of(E["image"], settings)
    (scores,) = predictor.probabilities([one])
    assert float(scores.sum(0).mean()) == pytest.approx(total)
    (result,) = predictor.label_maps([one])
    best, labels = scores.max(0)
    assert result.confidence() == {
        int(label): pytest.approx(float(best[labels == label].mean()) / total, abs=1e-4)
        for label in labels.unique()
    }


def test_masks_of_plain_images(model, tmp_path):
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(E["image"][:, : 90 - index]).save(paths[-1])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    samples = [Sample(p.stem, p, None, None, str(tmp_path)) for p in (*paths, broken)]
    settings = settings_of(ratios=(1.0,), ensemble="published", crf="voc_seg")
    report = predict(model, samples, tmp_path / "out", settings)
    masks = MaskFolder(tmp_path / "out")
    assert [problem.file for problem in report.left_out] == [str(broken)]
    assert masks.entries["0"].size == (75, 90)
    assert masks.read("1").shape == (75, 89)
    mtime = masks.path("0").stat().st_mtime_ns
    predict(model, samples[:2], tmp_path / "out", settings)
    assert masks.path("0").stat().st_mtime_ns == mtime
