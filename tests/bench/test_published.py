"""The published way that benchmarks compare with: it computes what our models compute."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from tests.models import small
from tests.tolerances import assert_golden

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


def test_loss_of_stage_2(published):
    model = small.segmenter(
        "deit_small_patch16_224", 5, image_size=48, drop_path=0.0, dropout=0.0,
        backbone_args={"embed_dim": 48, "depth": 2, "num_heads": 3},
    )  # fmt: skip
    images, labels = torch.randn(2, 3, 48, 48), torch.randint(5, (2, 48, 48))
    expected = model.loss(images, labels, start_value=9.0, tile=12).loss
    assert_golden(published.clipped_loss(model(images), labels, 12, 9.0), expected)
