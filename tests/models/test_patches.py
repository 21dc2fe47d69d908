"""The classifier of patches: its formulas one patch at a time, and its checkpoints."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tests.models.small import patch_model
from weaktr.config import CamModelConfig, PatchesConfig
from weaktr.models import PatchModel, checkpoints
from weaktr.models.patches import with_least_shares

CLASSES, SALIENCY = 32, 16  # features of two blocks of width 16, and of the last one
FEATURES = CLASSES + SALIENCY


@pytest.fixture
def model():
    return patch_model(3, seed=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_scores_are_those_of_the_formula(weight):
    model = patch_model(3, seed=1, saliency_weight=weight)
    features = 3 * torch.randn(40, FEATURES)
    scores = model.scores(features)
    low, high = model.saliency_range.tolist()
    certain = 0
    for patch, got in zip(features, scores.tolist(), strict=True):
        x, y = ((patch - model.center) / model.scale).split([CLASSES, SALIENCY])
        salient = min(max(((model.saliency @ y).item() - low) / (high - low), 0.02), 0.98)
        certain += salient in (0.02, 0.98)
        expected = (model.weight @ x + model.bias).tolist()
        expected[0] -= weight * math.log(salient / (1 - salient))
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert 0 < certain < 40


def test_shares_are_among_the_classes_of_the_photograph():
    """Without least shares: the softmax of background and these classes alone."""
    model = patch_model(3, seed=1, least_share=0.0, least_background=0.0)
    features = torch.randn(9, FEATURES)
    scores = model.scores(features)
    assert_close(model.shares(features, [2, 0]), scores[:, [0, 3, 1]].softmax(1))
    assert_close(model.shares(features, []), torch.ones(9, 1))


def test_a_class_is_as_likely_as_the_patches_most_like_it(model):
    features = torch.randn(60, FEATURES)
    likely = model.scores(features).softmax(1)
    for index, got in enumerate(model.class_probabilities(features).tolist()):
        best = sorted(likely[:, index + 1].tolist(), reverse=True)[:3]  # 5 % of 60
        assert got == pytest.approx(sum(best) / 3, rel=1e-5)


def shared_out(rows: list[list[float]], least: list[float]) -> list[list[float]]:
    """`with_least_shares` of one photograph, patch by patch."""
    for _ in range(6):
        means = [sum(row[label] for row in rows) / len(rows) for label in range(len(least))]
        factors = [
            min(max(own / max(mean, 1e-6), 1), 1000) for own, mean in zip(least, means, strict=True)
        ]
        rows = [[share * f for share, f in zip(row, factors, strict=True)] for row in rows]
        rows = [[share / sum(row) for share in row] for row in rows]
    return rows


@pytest.mark.parametrize("scale", [1, 5, 25])
def test_each_photograph_gets_least_shares_of_its_own(scale):
    logits = scale * torch.randn(200, 3)
    logits[:, 1] -= 2 * scale
    likely = logits.softmax(1)
    photograph = torch.arange(200) // 120
    least = torch.tensor([[0.2, 0.1, 0.05], [0.0, 0.3, 0.0]])
    shares = with_least_shares(likely, photograph, least)
    for number, own in enumerate(least):
        rows = photograph == number
        expected = shared_out(likely[rows].tolist(), own.tolist())
        assert_close(shares[rows], torch.tensor(expected), atol=5e-3, rtol=0)
        assert scale > 1 or (shares[rows].mean(0) > 0.98 * own).all()
        assert (shares[rows].mean(0)[1] > likely[rows].mean(0)[1]).all()


def test_a_label_that_every_patch_rules_out_gets_its_share():
    likely = torch.tensor([[1 - 1e-12, 1e-12]]).repeat(50, 1)
    least = torch.tensor([[0.2, 0.05]])
    shares = with_least_shares(likely, torch.zeros(50, dtype=torch.long), least)
    assert_close(shares, torch.tensor([[0.95, 0.05]]).repeat(50, 1), atol=1e-3, rtol=0)


def test_what_has_its_share_stays_as_it_is():
    likely = torch.tensor([[0.5, 0.5], [0.3, 0.7]])
    shares = with_least_shares(likely, torch.zeros(2, dtype=torch.long), torch.tensor([[0.2, 0.1]]))
    assert torch.equal(shares, likely)


def test_more_labels_than_there_is_room_for():
    """Of 20 classes with a twentieth each and the background no patch can have it all."""
    likely = torch.randn(400, 21).softmax(1)
    least = torch.tensor([[0.2] + [0.05] * 20])
    shares = with_least_shares(likely, torch.zeros(400, dtype=torch.long), least)
    assert (shares.mean(0) - least[0] / least.sum()).abs().max() < 0.005


@pytest.mark.parametrize("layers", [(-3,), (2,), (-1, 1), (0, -2)])
def test_blocks_that_are_not_there_or_twice(layers):
    with pytest.raises(ValueError, match=r"patches\.layers: expected blocks -2\.\.1, each once"):
        patch_model(3, layers=layers)
    with pytest.raises(ValueError, match="each once"):
        PatchesConfig(layers=(0, 0))


@pytest.mark.parametrize("count", [0, 255])
def test_classes_that_are_none_or_too_many_for_masks(count):
    with pytest.raises(ValueError, match=f"num_classes: expected 1 to 254, got {count}"):
        PatchModel(CamModelConfig(kind="patches", weights=None), count)


def test_a_checkpoint_gives_the_same(model, tmp_path):
    path = checkpoints.save(model, tmp_path / "model", classes=["a", "b", "c"])
    loaded, info = checkpoints.load(path)
    assert isinstance(loaded, PatchModel)
    assert info["model"] == "patches" and info["classes"] == ["a", "b", "c"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    features = torch.randn(9, FEATURES)
    assert torch.equal(loaded.shares(features, [0, 2]), model.shares(features, [0, 2]))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def changed(path, tensors=None, **config):
    """A checkpoint with other tensors, or with other settings in its description."""
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["weaktr"])
    info["config"] |= config
    state = load_file(path) | (tensors or {})
    save_file(state, path, metadata={"weaktr": json.dumps(info)})
    return path


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        ({"weight": torch.zeros(3, 32)}, {}, "weight (expected (4, 32), got (3, 32))"),
        ({"center": torch.zeros(32)}, {}, "center (expected (48,), got (32,))"),
        ({"saliency_range": torch.zeros(3)}, {}, "saliency_range (expected (2,), got (3,))"),
        ({"bias": torch.zeros(4, dtype=torch.int64)}, {}, "bias (torch.int64)"),
        ({"bias": torch.full((4,), torch.nan)}, {}, "not finite: bias"),
        ({"saliency": torch.zeros(48)}, {}, "saliency (expected (16,), got (48,))"),
        ({"scale": torch.zeros(48)}, {}, "scale: expected numbers above 0"),
        ({"saliency_range": torch.tensor([1.0, 1.0])}, {}, "saliency_range: expected a range"),
        ({"more": torch.zeros(1)}, {}, "unknown: more"),
        ({}, {"patches": {"layers": [0]}}, "center (expected (32,), got (48,))"),
        ({}, {"patches": {"layers": [0, 5]}}, "patches.layers: expected blocks -2..1"),
        ({}, {"patches": {"layers": []}}, "expected at least one block"),
        ({}, {"patches": {"least_share": 1.0}}, "patches.least_share"),
        ({}, {"kind": "pixels"}, "kind: expected one of class_tokens, patches"),
        ({}, {"num_classes": 200}, "weight (expected (201, 32), got (4, 32))"),
        ({}, {"num_classes": "3"}, "num_classes: expected 1 to"),
    ],
)
def test_checkpoints_that_do_not_fit(model, tmp_path, tensors, config, told):
    path = changed(checkpoints.save(model, tmp_path / "model"), tensors, **config)
    with pytest.raises(ValueError) as caught:
        checkpoints.load(path)
    assert told in str(caught.value)
