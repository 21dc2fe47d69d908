"""Packed linear layers: the same outputs, nothing of the model touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models import small
from tests.tolerances import assert_close
from weaktr.models.inference import for_inference
from weaktr.models.onednn import OneDnnLinear, has_onednn, with_onednn_layers

BACKBONES = {
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_small_patch14_dinov2": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "eva02_small_patch14_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_small_patch16_dinov3": {"embed_dim": 48, "depth": 2, "num_heads": 3},
}


def segmenter(backbone):
    sizes = {"image_size": 48, "patch_size": 16, "backbone_args": BACKBONES[backbone]}
    return small.segmenter(backbone, 5, **sizes).eval()


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_the_same_logits_and_the_model_as_it_was(backbone):
    model = segmenter(backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 48, 64)
    expected = model.patch_outputs(images)[0]
    if not has_onednn(model):
        pytest.skip("this torch has no oneDNN")
    twin = with_onednn_layers(model, tokens=12)
    layers = [m for m in twin.modules() if isinstance(m, nn.Linear | OneDnnLinear)]
    assert layers and all(isinstance(layer, OneDnnLinear) for layer in layers)
    assert_close(twin.patch_outputs(images)[0], expected, "golden")
    assert not any(isinstance(m, OneDnnLinear) for m in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model.patch_outputs(images)[0], expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@torch.inference_mode()
def test_only_the_exact_gelu_is_joined(approximate):
    model = segmenter("vit_tiny_patch16_224")
    for block in model.vit.blocks:
        block.mlp.act = nn.GELU(approximate)
    images = torch.randn(1, 3, 48, 48)
    twin = with_onednn_layers(model, 9)
    assert_close(twin.patch_outputs(images)[0], model.patch_outputs(images)[0], "golden")


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_bfloat16_errs_at_most_twice_as_much_as_autocast(backbone):
    model = segmenter(backbone)
    images = torch.randn(2, 3, 48, 64)
    exact = model.double().patch_outputs(images.double())[0]
    model.float()
    if not has_onednn(model):
        pytest.skip("this torch has no oneDNN")
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model.patch_outputs(images)[0]
        ours = with_onednn_layers(model, 12, torch.bfloat16).patch_outputs(images)[0]
    assert ours.dtype == theirs.dtype
    assert (ours - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()


def test_half_precision_is_left_alone():
    model = segmenter("vit_tiny_patch16_224").bfloat16()
    assert not has_onednn(model)
    assert with_onednn_layers(model, 9) is model


def test_no_onednn_in_bf16_where_the_cpu_lacks_it(monkeypatch):
    """Then PyTorch computes it, in a slower way, where oneDNN would end with an error."""
    model = torch.nn.Linear(3, 4)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert has_onednn(model) and not has_onednn(model, torch.bfloat16)
    assert with_onednn_layers(model, 8, torch.bfloat16) is model
    x = torch.randn(5, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert for_inference(model, "bf16", 8)(x).dtype == torch.bfloat16
