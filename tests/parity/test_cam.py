"""Stage-1 model against the published code: goldens A (and T, its training steps)."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from tests.parity import recipe
from tests.tolerances import GRADIENT_FLOOR, assert_golden
from weaktr.models.released.state_dicts import cam_model_from_published, cam_names
from weaktr.ops import fuse_heads, head_stats

TINY = ["A_a1_voc20_avg", "A_a2_voc20_max", "A_a3_coco90_max", "A_a5_hd16_odd"]
SIZES = {
    "sq64": (2, 3, 64, 64),
    "ns96x64": (2, 3, 96, 64),
    "sq96": (1, 3, 96, 96),
    "nm75x100": (1, 3, 75, 100),
    "eq32x128": (1, 3, 32, 128),
}
#: published attention type -> ours
TYPES = {"fused": "fused", "patchcam": "coarse", "transcam": "transcam"}


def model_of(name):
    config = recipe.config(name)
    return cam_model_from_published(
        recipe.state_dict(name),
        num_heads=config["num_heads"],
        reduction=config["reduction"],
        feat_reduction=config["feat_reduction"],
        pool=config["pool"],
    )


def full_size_model():
    """DeiT-S with the published key list and recipe weights."""
    keys = json.loads((recipe.GOLDEN / "F_checkpoint_keys.json").read_text())
    shapes = keys["stage1.deit_small_WeakTr_voc20"]
    state = {k: recipe.recipe_weight(k, shape, 1) for k, (shape, _) in shapes.items()}
    return cam_model_from_published(state, num_heads=6, reduction=8.0, feat_reduction=8, pool="max")


def fused_patch_attention(model, images):
    """[B, P, P], from `fuse_heads` spreading the identity; and the fusion weights [B, M],
    head by head as published."""
    with torch.no_grad():
        encoding = model.encode(model.vit.embed(images), lambda layer: (layer.q, layer.k))
        weights = model.fusion(encoding.features)
        q, k = (
            torch.stack(part, 1).flatten(1, 2) for part in zip(*encoding.collected, strict=True)
        )
        patches = encoding.patch_maps[0].shape[-2:].numel()
        lse = head_stats(q, k, num_classes=model.num_classes, num_patches=patches).lse
        identity = torch.eye(patches).expand(images.shape[0], -1, -1)
        fused = fuse_heads(q, k, lse, weights.flatten(1), identity)
        return fused, weights.transpose(1, 2).flatten(1)


def check_outputs(model, images, golden, prefix):
    """Every model-level array of one input."""
    with torch.no_grad():
        output = model(images)
    assert_golden(output.class_logits, golden[f"{prefix}.cls_token_pred"])
    assert_golden(output.coarse_logits, golden[f"{prefix}.coarse_cam_pred"])
    assert_golden(output.fine_logits, golden[f"{prefix}.fine_cam_pred"])
    for published, ours in TYPES.items():
        for suffix, refine in (("cams", False), ("refined", True)):
            key = f"{prefix}.{published}.{suffix}"
            if key in golden:
                cams = model.cams(images, attention_type=ours, refine=refine)
                assert_golden(cams, golden[key])
    patch, weights = fused_patch_attention(model, images)
    assert_golden(weights[..., None, None], golden[f"{prefix}.aaf_weight"])
    if f"{prefix}.patch_attn" in golden:
        assert_golden(patch, golden[f"{prefix}.patch_attn"][0])
    if f"{prefix}.patch_attn_rows0_8" in golden:
        assert_golden(patch[:, :8], golden[f"{prefix}.patch_attn_rows0_8"][0])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", SIZES)
def test_outputs_of_every_size(name, size):
    golden = recipe.arrays(name)
    images = recipe.rnd(f"stage1.input.{size}", SIZES[size])
    check_outputs(model_of(name), images, golden, f"out.{size}")


def test_outputs_of_the_full_size_model():
    golden, model = recipe.arrays("A_a6_full_voc20"), full_size_model()
    for size, shape in (("sq224", (1, 3, 224, 224)), ("ns160x240", (1, 3, 160, 240))):
        images = recipe.rnd(f"stage1.a6_full_voc20.{size}", shape)
        check_outputs(model, images, golden, f"out.{size}")


@pytest.mark.parametrize("size", ["sq64", "nm75x100"])
def test_what_happens_inside(size):
    """Position embedding, attention maps, fusion features and last tokens of the a2 model."""
    golden, model = recipe.arrays("A_a2_voc20_max"), model_of("A_a2_voc20_max")
    images = recipe.rnd(f"stage1.input.{size}", SIZES[size])
    inter = f"out.{size}.inter"
    with torch.no_grad():
        batch = model.vit.embed(images)
        tokens = batch.tokens
        position = model.vit._position(batch.grids[0], tuple(images.shape[-2:]))
        maps, features = [], []
        for index in range(len(model.vit.blocks)):
            layer = model.vit.run_block(index, tokens, batch, with_lse=True)
            tokens, attended, q, k, lse, _ = layer
            maps.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 - lse[..., None]).exp())
            features.append(attended.unflatten(2, (-1, model.vit.num_heads)).permute(0, 3, 1, 2))
    assert_golden(position, golden[f"{inter}.pos_embed_used"])
    assert_golden(torch.stack(maps, 2).flatten(1, 2), golden[f"{inter}.attn_maps"])
    assert_golden(torch.stack(features, 2).flatten(1, 2), golden[f"{inter}.attn_feats"])
    assert_golden(tokens[:, :20], golden[f"{inter}.x_cls"])
    assert_golden(tokens[:, 20:], golden[f"{inter}.x_patch"])


@pytest.mark.parametrize("name", [*TINY, "A_a6_full_voc20"])
def test_losses_and_gradients(name):
    golden = recipe.arrays(name)
    full = name == "A_a6_full_voc20"
    model = (full_size_model() if full else model_of(name)).train()
    tag, shape = (
        ("stage1.a6_full_voc20.grad", (2, 3, 224, 224))
        if full
        else ("stage1.input.sq64", SIZES["sq64"])
    )
    losses = [
        F.multilabel_soft_margin_loss(logits, golden["target"])
        for logits in model(recipe.rnd(tag, shape))
    ]
    for loss, key in zip(losses, ("cls", "patch", "attn"), strict=True):
        assert_golden(loss, golden[f"loss.{key}"])
    total = sum(losses)
    assert_golden(total, golden["loss.total"])
    total.backward()
    expected = cam_names(
        {k.removeprefix("grad."): v for k, v in golden.items() if k.startswith("grad.")}
    )
    assert expected
    parameters = dict(model.named_parameters())
    for key, value in expected.items():
        assert_golden(parameters[key].grad, value, GRADIENT_FLOOR)
    assert all(parameters[f"vit.norm.{leaf}"].grad is None for leaf in ("weight", "bias"))


def test_fine_loss_reaches_the_fusion_only():
    model = model_of("A_a2_voc20_max").train()
    output = model(recipe.rnd("stage1.input.sq64", SIZES["sq64"]))
    output.fine_logits.sum().backward()
    reached = {k for k, v in model.named_parameters() if v.grad is not None}
    assert reached == {k for k, _ in model.named_parameters() if k.startswith("fusion.")}
