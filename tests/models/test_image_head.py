"""The image head of a segmenter, from forward pass to export; and an encoder that is frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.inference.published import inputs_of
from tests.models import small
from tests.tolerances import assert_close
from weaktr import export
from weaktr.config import PredictConfig
from weaktr.inference.probabilities import for_ensemble, for_prediction, probabilities
from weaktr.inference.windows import merge, on_device, views, windows
from weaktr.models import MultiLogits, checkpoints
from weaktr.models.segmenter import gated
from weaktr.training.optimizers import segmenter_optimizer

LABELS = 4
DECODERS = ["linear", "mask_transformer", "multi_mask_transformer"]


def segmenter(backbone="vit_tiny_patch16_224", **changes):
    given = {
        "image_size": 32, "patch_size": 8, "image_head": True, "decoder": "linear",
        "backbone_args": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    return small.segmenter(backbone, LABELS, **(given | changes)).eval()


def test_gating_is_its_formula():
    logits, classes = torch.randn(2, LABELS, 3, 5), torch.randn(2, LABELS - 1)
    out = gated(logits, classes, 0.7)
    for image in range(2):
        assert torch.equal(out[image, 0], logits[image, 0])
        for index in range(LABELS - 1):
            known = 0.7 * torch.log(torch.sigmoid(classes[image, index]))
            assert_close(out[image, index + 1], logits[image, index + 1] + known, "float32")
    assert torch.equal(gated(logits, classes, 0.0), logits)
    assert gated(logits, None) is logits


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_forward_pass_is_gated_and_a_training_pass_is_not(decoder):
    model, images = segmenter(decoder=decoder), torch.randn(2, 3, 28, 32)
    model.image_head.head.bias.data[:] = torch.tensor([-50.0, 0, 9])
    with torch.no_grad():
        outputs = model(images)
        tokens = model.vit(F.pad(images, (0, 0, 0, 4)))
        plain = model.decode(model.encode(images))
    outputs = outputs if isinstance(outputs, MultiLogits) else (outputs,)
    parts = torch.cat([tokens[:, 1:].mean(1), tokens[:, 0]], 1)
    classes = parts @ model.image_head.head.weight.T + model.image_head.head.bias
    up = F.interpolate(plain, (32, 32), mode="bilinear", align_corners=False)[..., :28, :]
    known = F.pad(F.logsigmoid(classes), (1, 0))[..., None, None]
    assert_close(outputs[-1], up + known, "float32")
    for logits in outputs:
        assert (logits[:, 1] < -30).all()


def test_a_backbone_without_class_token_has_the_patches_alone():
    model = segmenter(
        "vit_base_patch16_siglip_224", backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2}
    )
    with torch.no_grad():
        encoding = model.encode(torch.randn(1, 3, 32, 32))
        expected = model.image_head.head(encoding.patches.mean(1))
    assert model.vit.num_class_tokens == 0
    assert torch.equal(encoding.classes, expected)


def test_padding_is_no_part_of_the_mean_patch():
    model, images = segmenter(), torch.randn(2, 3, 32, 32)
    inside = torch.zeros(2, 4, 4)
    inside[0, :2, :3] = inside[1] = 1
    with torch.no_grad():
        encoding = model.encode(images, inside)
        tokens = model.vit(images)
    maps = encoding.patches.unflatten(1, (4, 4))
    means = torch.stack([maps[0, :2, :3].mean((0, 1)), maps[1].mean((0, 1))])
    assert_close(
        encoding.classes, model.image_head.head(torch.cat([means, tokens[:, 0]], 1)), "float32"
    )


@pytest.mark.parametrize("ensemble", ["plain", "published"])
def test_windows_are_gated_by_the_most_of_each_view(ensemble):
    """The definition, window by window: the largest logit of a class counts for its view."""
    settings = PredictConfig(
        short_side=40, ratios=(1.0, 1.5), window=32, stride=20, ensemble=ensemble, crf=None,
        image_weight=0.6,
    )  # fmt: skip
    model = for_ensemble(segmenter(decoder="mask_transformer"), ensemble)
    image = np.random.default_rng(0).integers(0, 255, (40, 61, 3), np.uint8)
    inputs = inputs_of(image, settings)
    actual = probabilities(for_prediction(model, settings), [inputs], settings)[0]
    expected = torch.zeros_like(actual)
    all_views = views(inputs.scaled, settings)
    for view in all_views:
        crops = windows([view], on_device(model.normalization, torch.device("cpu")), 32)
        with torch.no_grad():
            rows = [model.patch_outputs(crop[None]) for crop in crops]
        most = torch.stack([classes[0] for _, classes in rows]).amax(0)
        merged = merge(view, torch.cat([own for own, _ in rows]), 8, 32, (40, 61))
        merged[:, 1:] += 0.6 * most.sigmoid().log()[:, None, None]
        shares = merged.softmax(1)
        expected += (0.8 * shares[0] + shares[1] if ensemble == "published" else shares[0]) / len(
            all_views
        )
    assert_close(actual, expected, "float32")


def test_a_weight_of_0_predicts_without_it():
    settings = PredictConfig(
        short_side=32, ratios=(1.0,), window=32, stride=32, ensemble="plain", crf=None,
        image_weight=0.0,
    )  # fmt: skip
    model = segmenter()
    inputs = inputs_of(np.zeros((32, 40, 3), np.uint8), settings)
    before = probabilities(model, [inputs], settings)[0]
    model.image_head.head.bias.data -= 50
    assert torch.equal(probabilities(model, [inputs], settings)[0], before)


def test_checkpoints_keep_it(tmp_path):
    model, images = segmenter(), torch.randn(1, 3, 32, 40)
    path = checkpoints.save(model, tmp_path / "model", classes=["a", "b", "c"])
    again, description = checkpoints.load(path)
    assert description["config"]["image_head"] is True
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "decoder", ["linear", pytest.param("multi_mask_transformer", marks=pytest.mark.rare)]
)
def test_exported_models_are_gated_too(tmp_path, decoder):
    model = segmenter(decoder=decoder, position="published_seg")
    model.image_head.head.bias.data[:] = torch.tensor([-5.0, 0, 5])
    check = export.export_program(model, tmp_path / "model.pt2", ["background", "a", "b", "c"])
    assert check.difference <= 1e-4 * check.magnitude


# ---- a frozen encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_frozen_encoder_stays_as_it_is(decoder, kind):
    model = segmenter(decoder=decoder, drop_path=0.9, dropout=0.0)
    optimizer = segmenter_optimizer(model, 0.1, encoder_lr=0.0, weight_decay=0.5, kind=kind)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode(images).patches, model.encode(images).patches)  # no drop path
    for _ in range(3):
        encoding = model.encode(images)
        assert not encoding.patches.requires_grad
        (model.decode(encoding).square().mean() + encoding.classes.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert not any(name.startswith("vit.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {"decoder", "image_head"}
    assert all(parameter.grad is None for parameter in model.vit.parameters())


def test_a_tuned_encoder_learns():
    model = segmenter()
    segmenter_optimizer(model, 0.1, encoder_lr=0.1)
    model.train()
    model.decode(model.encode(torch.randn(1, 3, 32, 32))).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.vit.parameters())
    assert model.vit.training
