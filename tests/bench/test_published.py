"""The published way that benchmarks compare with: it computes what our models compute."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import small
from tests.tolerances import assert_golden
from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.photographs import reduced
from weaktr.inference.probabilities import probabilities, seg_inputs

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def published():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("published")
    sys.path.remove(str(BENCH))
    del sys.modules["published"]


@pytest.fixture
def model():
    tiny = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    sizes = {"image_size": 48, "backbone_args": tiny, "reduction": 2.0}
    return small.cam_model("deit_small_patch16_224", 4, **sizes).eval()


@torch.no_grad()
def test_outputs_and_cams_of_stage_1(published, model):
    images, labels = torch.randn(2, 3, 48, 64), torch.eye(4)[[1, 3]]
    for actual, expected in zip(published.cam_forward(model, images), model(images), strict=True):
        assert_golden(actual, expected)
    assert_golden(published.cams(model, images, labels), model.cams(images, labels))


def segmenter():
    return small.segmenter(
        "deit_small_patch16_224", 5, image_size=48, drop_path=0.0, dropout=0.0,
        backbone_args={"embed_dim": 48, "depth": 2, "num_heads": 3},
    )  # fmt: skip


def test_loss_of_stage_2(published):
    model = segmenter()
    images, labels = torch.randn(2, 3, 48, 48), torch.randint(5, (2, 48, 48))
    expected = model.loss(images, labels, start_value=9.0, tile=12).loss
    logits = published.patch_logits(model, images)
    assert_golden(published.clipped_loss(logits, labels, 12, 9.0), expected)


@torch.no_grad()
def test_logits_of_stage_2_come_from_explicit_attention(published, monkeypatch):
    """Not from our own code, or a benchmark would compare it with itself."""
    model, images = segmenter(), torch.randn(2, 3, 48, 64)
    expected = model.patch_logits(images)
    for name in ("attend", "mlp_of_norm", "linear_of_norm"):
        monkeypatch.delattr(f"weaktr.models.blocks.{name}")
    assert_golden(published.patch_logits(model, images), expected)


def test_probabilities_of_stage_2(published):
    model, image = segmenter(), np.random.default_rng(0).integers(0, 255, (52, 70, 3), np.uint8)
    settings = PredictConfig(
        short_side=52, ratios=(1.0, 1.5), window=48, stride=32, ensemble="plain", crf=None
    )
    sample = Sample("image", Path("image.png"), None, None, "")
    inputs = seg_inputs(sample, reduced(image, None), settings, torch.device("cpu"))
    (expected,) = probabilities(model.eval(), [inputs], settings)
    assert_golden(torch.from_numpy(published.probabilities(model, image, settings)), expected)
