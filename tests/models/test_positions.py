"""Positions belong to places of a grid, not to their number."""

from __future__ import annotations

import pytest
import torch

from tests.models import small
from tests.tolerances import assert_close
from weaktr.config import BackboneConfig
from weaktr.models import ViT, checkpoints
from weaktr.models import vit as vit_module
from weaktr.models.pretrained import load_backbone
from weaktr.models.vit import projected_by_convolution, projected_by_product

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3}


@pytest.mark.parametrize("position", ["timm", "published_cam", "published_seg"])
def test_positions_of_a_grid_that_is_not_square(position):
    """3 x 12 patches are not 6 x 6: the positions are those of the places."""
    config = BackboneConfig(
        "deit_small_patch16_224", image_size=(48, 192), position=position, backbone_args=TINY
    )
    vit = ViT(config)
    stored = torch.arange(36.0).view(1, 36, 1).expand(-1, -1, vit.embed_dim)
    with torch.no_grad():
        vit.pos_embed[:, 1:] = stored
        assert torch.equal(vit._position((3, 12), (48, 192))[:, 1:], stored)
        wider = vit._position((3, 24), (48, 384))[0, 1:, 0].view(3, 24)
    places = 12 * torch.arange(3.0)[:, None] + (torch.arange(24.0) - 0.5) / 2
    torch.testing.assert_close(wider, places, rtol=0, atol=1.5)  # 6 x 6 would be 5 off


def test_published_segmenters_say_that_they_mix_positions_up(caplog):
    config = BackboneConfig(
        "deit_small_patch16_224", image_size=64, position="published_seg", backbone_args=TINY
    )
    vit = ViT(config)
    for _ in range(2):
        vit._position((1, 16), (16, 256))
    (record,) = caplog.records
    assert "the positions of 4 x 4 patches as they are for 1 x 16" in record.getMessage()


def test_backbone_weights_of_another_grid_of_as_many_patches(tmp_path, caplog):
    """6 x 6 positions are resized for 3 x 12; a checkpoint of ours says which of both it has."""
    square = small.segmenter("deit_small_patch16_224", 4, image_size=96, backbone_args=TINY)
    wide = {"image_size": (48, 192), "backbone_args": TINY}
    own = small.segmenter("deit_small_patch16_224", 4, **wide)
    for model, kept in ((square, False), (own, True)):
        path = checkpoints.save(model, tmp_path / "model.safetensors")
        torch.save(dict(model.vit.state_dict()), tmp_path / "bare.pth")
        for file, stays in ((path, kept), (tmp_path / "bare.pth", False)):
            config = BackboneConfig("deit_small_patch16_224", str(file), **wide)
            vit = ViT(config)
            load_backbone(vit, config)
            assert torch.equal(vit.pos_embed[:, 1:], model.vit.pos_embed[:, 1:]) == stays
    assert caplog.messages == ["pos_embed: 36 positions are taken as 6 x 6, not as 3 x 12"] * 2


@pytest.mark.parametrize("bias", [True, False])
def test_patches_by_a_product_are_those_of_the_convolution(bias):
    projection = torch.nn.Conv2d(3, 20, 8, stride=8, bias=bias)
    images = torch.randn(2, 3, 29, 43)  # 3 x 5 patches, and less than one at the end
    expected, grid = projected_by_convolution(projection, images)
    patches, own_grid = projected_by_product(projection, images)
    assert own_grid == grid == (3, 5)
    assert_close(patches, expected, "float32")
    found, wanted = (
        torch.autograd.grad((x * torch.arange(20.0)).sum(), projection.parameters())
        for x in (patches, expected)
    )
    for own, other in zip(found, wanted, strict=True):
        assert_close(own, other, "float32")


def test_positions_of_the_last_sizes_are_kept_on_a_gpu(monkeypatch):
    """And forgotten when the parameter changes."""
    vit = ViT(BackboneConfig("deit_small_patch16_224", image_size=48, backbone_args=TINY)).eval()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(vit_module, "POSITION_BYTES", 4 * 48 * 30)  # of 30 tokens
    with torch.no_grad():
        first = vit._position_of((3, 4), (48, 64))
        assert vit._position_of((3, 4), (48, 64)) is first
        vit._position_of((3, 3), (48, 48)), vit._position_of((4, 4), (64, 64))
        assert len(vit._positions) == 2
        assert vit._position_of((3, 4), (48, 64)) is not first
        vit.pos_embed.add_(1.0)
        assert torch.equal(vit._position_of((3, 4), (48, 64)), vit._position((3, 4), (48, 64)))
    assert vit._position_of((3, 4), (48, 64)).requires_grad


@pytest.mark.parametrize(
    ("backbone", "made"),
    [
        ("vit_small_patch16_dinov3", 1),
        ("eva02_small_patch14_224", 1),
        ("vit_small_patch16_rope_mixed_224", 3),  # which learns it
    ],
)
def test_rotary_embeddings_are_made_once_on_a_gpu(monkeypatch, backbone, made):
    """timm makes DINOv3's on the host, and each copy to the GPU would be waited for."""
    vit = ViT(BackboneConfig(backbone, image_size=48, backbone_args=TINY)).train()
    calls, get_embed, kept = [], vit.rope.get_embed, torch.device("cuda")
    monkeypatch.setattr(vit.rope, "get_embed", lambda **x: calls.append(x) or get_embed(**x))
    with torch.inference_mode():
        first = vit._rope_of((3, 3), kept)
    for _ in range(2):
        assert torch.equal(vit._rope_of((3, 3), kept), first)
    assert len(calls) == made
    assert made > 1 or not vit._rope_of((3, 3), kept).is_inference()
    assert vit._rope_of((2, 3), kept).shape[-2] == 6


@pytest.mark.parametrize("is_wide", [False, True])
def test_no_positions_are_kept_over_a_step_of_a_fused_optimiser(monkeypatch, is_wide):
    """Which does not raise a parameter's version."""
    vit = ViT(BackboneConfig("deit_small_patch16_224", image_size=48, backbone_args=TINY))
    optimizer = torch.optim.SGD(vit.parameters(), lr=1.0, fused=True)
    size = ((3, 4), (48, 64)) if is_wide else ((3, 3), (48, 48))
    stored = vit.pos_embed
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for mode in (True, False, True):  # pieces of a batch, then a score, then on
        vit.train(mode)
        with torch.no_grad():
            assert torch.equal(vit._position_of(*size), vit._position(*size))
            before, version = vit._position(*size).clone(), stored._version
        stored.grad = torch.ones_like(stored)
        with monkeypatch.context() as on_cpu:
            on_cpu.setattr(torch.Tensor, "is_cuda", False)
            optimizer.step()
        assert stored._version == version
        for later in (True, False):  # with a step in between, as the version does not tell
            vit.train(True)
            vit.train(later)
            with torch.no_grad():
                after = vit._position_of(*size)
            assert not torch.equal(after, before)
            assert torch.equal(after, vit._position(*size))
