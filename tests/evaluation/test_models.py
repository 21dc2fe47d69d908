"""Scores of models on images with true masks."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from weaktr.config import EvaluateConfig, LabelConfig, PredictConfig
from weaktr.data import Sample
from weaktr.evaluation.models import cam_curve, score_segmenter
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.predictions import Predictor

LABEL = LabelConfig(scales=(1.0,), flip=False)
PREDICT = PredictConfig(
    short_side=32, window=32, stride=32, ratios=(1.0,), refiners=({"crf": "voc_seg"},)
)


@pytest.fixture
def samples(tmp_path):
    found = []
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        mask = tmp_path / f"{name}_mask.png"
        Image.fromarray(pixels[..., 0] % 3).save(mask)
        found.append(Sample(name, tmp_path / f"{name}.png", (0, 1), mask, "list:1"))
    return found


def test_an_image_whose_scores_are_no_numbers_is_not_scored(samples, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "weaktr")
    cam_model = small.tiny_cam_model()
    segmenter = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32, patch_size=16,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    others = [samples[0], samples[2]]
    curve = cam_curve(cam_model, others, LABEL, EvaluateConfig())
    scores = score_segmenter(segmenter, others, PREDICT)
    cams, probabilities = CamsOfModel.cams, Predictor.probabilities

    @torch.inference_mode()
    def broken_cams(self, batch):
        found = cams(self, batch)
        for one, own in zip(batch, found, strict=True):
            own.maps[0, 0, 0] = np.nan if one.sample.name == "b" else own.maps[0, 0, 0]
        return found

    @torch.inference_mode()
    def broken_probabilities(self, batch):
        found = probabilities(self, batch)
        for one, own in zip(batch, found, strict=True):
            own[0, 0, 0] = np.inf if one.sample.name == "b" else own[0, 0, 0]
        return found

    monkeypatch.setattr(CamsOfModel, "cams", broken_cams)
    monkeypatch.setattr(Predictor, "probabilities", broken_probabilities)
    broken = cam_curve(cam_model, samples, LABEL, EvaluateConfig())
    assert [one.miou for one in broken.scores()] == [one.miou for one in curve.scores()]
    assert score_segmenter(segmenter, samples, PREDICT).miou == scores.miou
    lines = [line for line in caplog.text.splitlines() if "not scored: " in line]
    assert len(lines) == 2 and all("b.png" in line for line in lines)
