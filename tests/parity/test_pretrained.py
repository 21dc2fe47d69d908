"""Loading of pretrained backbones against the published loaders: goldens F."""

from __future__ import annotations

import json

import pytest
import torch

from tests.models import small
from tests.parity import recipe
from tests.tolerances import assert_golden
from weaktr.config import BackboneConfig
from weaktr.models.pretrained import augreg_names, fit_state, load_backbone, timm_names
from weaktr.models.released.state_dicts import (
    BACKBONES,
    cam_model_from_published,
    segmenter_from_published,
)

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}
CASES = json.loads((recipe.GOLDEN / "F_checkpoint_keys.json").read_text())


def golden_of(kind):
    stored = recipe.arrays("F_pretrained_loading")
    return (
        {
            k.removeprefix(f"{kind}.{part}."): v
            for k, v in stored.items()
            if k.startswith(f"{kind}.{part}.")
        }
        for part in ("ckpt", "loaded")
    )


@pytest.mark.parametrize("kind", ["deit", "dinov2", "eva02"])
def test_positions_and_patch_kernels_are_resized_as_published(kind):
    checkpoint, loaded = golden_of(kind)
    model = small.segmenter(BACKBONES[kind], 5, image_size=80, patch_size=16, backbone_args=SIZES)
    fitted = fit_state(timm_names(checkpoint), model.vit, "bilinear")
    for key in ("pos_embed", "patch_embed.proj.weight", "cls_token"):
        assert_golden(fitted[key], loaded[key])
    if kind == "eva02":
        sin, cos = model.vit.rope.get_embed(shape=[5, 5]).chunk(2, -1)
        assert_golden(cos, loaded["rope.freqs_cos"])
        assert_golden(sin, loaded["rope.freqs_sin"])


def test_augreg_npz():
    _, loaded = golden_of("augreg")
    state = augreg_names(recipe.GOLDEN / "F_augreg_tiny.npz")
    model = small.segmenter(BACKBONES["deit"], 5, image_size=80, patch_size=16, backbone_args=SIZES)
    fitted = fit_state(timm_names(state), model.vit, "bicubic")
    for key, value in loaded.items():
        actual = state[key] if key.startswith("head.") else fitted[key]
        assert_golden(actual, value)
    weights = str(recipe.GOLDEN / "F_augreg_tiny.npz")
    load_backbone(model.vit, BackboneConfig(weights=weights, resize="bicubic"))
    assert_golden(model.vit.state_dict()["pos_embed"], loaded["pos_embed"])


def test_stage_1_repeats_the_class_token():
    checkpoint, loaded = golden_of("stage1")
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 6}
    model = small.cam_model(
        BACKBONES["deit"], 20, image_size=64, patch_size=16, backbone_args=sizes
    )
    fitted = fit_state(timm_names(checkpoint), model.vit, "bicubic")
    assert_golden(fitted["pos_embed"], loaded["pos_embed"])
    assert_golden(fitted["cls_token"], loaded["cls_token"])


@pytest.mark.rare  # so does tests/cli/test_import.py
@pytest.mark.parametrize("name", [k for k in CASES if k.startswith(("stage1.", "stage2."))])
def test_published_key_lists_load(name):
    """Every released model's names and shapes, with zeros for weights."""
    state = {k: torch.zeros(shape) for k, (shape, _) in CASES[name].items()}
    if name.startswith("stage1."):
        model = cam_model_from_published(
            state, num_heads=6, reduction=8.0, feat_reduction=8, pool="max"
        )
        assert model.num_classes == state["cls_token"].shape[1]
        return
    crop = int(name.rsplit("crop", 1)[1].split(".")[0])
    decoder = "linear" if "decoder.head.weight" in state else "mask_transformer"
    model = segmenter_from_published(state, encoder_heads=6, decoder=decoder, image_size=crop)
    assert model.num_labels == (91 if "coco91" in name else 21)
