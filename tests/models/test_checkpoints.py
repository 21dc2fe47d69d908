"""Native checkpoints: self-describing, strict, atomic; and weights that move between stages."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import small
from weaktr.config import BackboneConfig
from weaktr.models import checkpoints
from weaktr.models.pretrained import load_backbone

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def cam_model(**changes):
    arguments = {"image_size": 64, "reduction": 2.0, "backbone_args": TINY} | changes
    return small.cam_model("vit_small_patch14_reg4_dinov2", 3, **arguments)


@pytest.mark.parametrize("stage", ["cam", "segmenter"])
def test_a_checkpoint_rebuilds_its_model(tmp_path, stage):
    model = (
        cam_model()
        if stage == "cam"
        else small.segmenter("eva02_small_patch14_224", 4, image_size=64, backbone_args=TINY)
    ).eval()
    model.vit.normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = checkpoints.save(model, tmp_path / "model", classes=["cat", "dog", "emu"])
    again, info = checkpoints.load(path)
    assert info["model"] == stage and info["classes"] == ["cat", "dog", "emu"]
    assert info == json.loads((tmp_path / "model.json").read_text())
    assert again.normalization == model.normalization and again.config == model.config
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        for ours, theirs in zip(model(images), again(images), strict=True):
            assert torch.equal(ours, theirs)


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    text = (tmp_path / "model.json").read_text()
    state = load_file(path)
    del state["head.bias"]
    state["fusion.map_score.weight"] = torch.zeros(2, 2)
    save_file(state, path, metadata={"weaktr": text})
    with pytest.raises(ValueError, match=r"1 missing: head\.bias; .*map_score\.weight \(expected"):
        checkpoints.load(path)


def test_foreign_and_cut_off_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="without a weaktr description"):
        checkpoints.load(path)
    whole = checkpoints.save(cam_model(), tmp_path / "model")
    path.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoints.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(cam_model(), path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_stage_2_starts_from_a_stage_1_checkpoint(tmp_path):
    source = cam_model()
    path = checkpoints.save(source, tmp_path / "model")
    arguments = {"image_size": 98, "backbone_args": TINY, "weights": path}
    target = small.segmenter("vit_small_patch14_reg4_dinov2", 4, **arguments)
    theirs, ours = source.vit.state_dict(), target.vit.state_dict()
    torch.testing.assert_close(ours["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
    torch.testing.assert_close(ours["cls_token"], theirs["cls_token"].mean(1, keepdim=True))
    assert ours["pos_embed"].shape == (1, 49, 48)


def test_class_tokens_with_positions_are_averaged_too(tmp_path):
    source = small.cam_model(
        "deit_small_patch16_224", 5, image_size=64, reduction=2.0, backbone_args=TINY
    )
    path = checkpoints.save(source, tmp_path / "model")
    target = small.segmenter("deit_small_patch16_224", 4, image_size=64, backbone_args=TINY)
    load_backbone(target.vit, BackboneConfig(weights=str(path)))
    position = source.vit.pos_embed
    torch.testing.assert_close(target.vit.pos_embed[:, :1], position[:, :5].mean(1, keepdim=True))
    torch.testing.assert_close(target.vit.pos_embed[:, 1:], position[:, 5:])


def test_backbone_of_another_width_is_refused_by_name(tmp_path):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"of another shape: .*expected \(1, 3, 96\)"):
        cam_model(weights=path, backbone_args=TINY | {"embed_dim": 96})


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"model": {"x": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"mkdir, which could run code\. Nothing was run"):
        cam_model(weights=tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()
