"""Native checkpoints: self-describing, strict, atomic; and weights that move between stages."""

from __future__ import annotations

import json
import os
import re
import stat
import struct

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.models import small
from weaktr.config import BackboneConfig
from weaktr.models import checkpoints
from weaktr.models.pretrained import load_backbone, timm_state
from weaktr.training.state import save_state

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


@pytest.mark.parametrize(
    "build",
    [
        small.tiny_cam_model,
        small.patch_model,
        lambda count: small.segmenter(
            "vit_tiny_patch16_224", count, decoder="linear", image_size=32, backbone_args=TINY
        ),
    ],
)
def test_classes_may_be_counted_by_numpy(tmp_path, build):
    path = checkpoints.save(build(np.int64(3)), tmp_path / "model")
    again, _ = checkpoints.load(path)
    counts = [getattr(again, name, None) for name in ("num_classes", "num_labels")]
    assert 3 in counts
    for wrong in (3.0, "3", True, np.int64(256)):
        with pytest.raises(ValueError, match=f"expected . to 25.*, got {re.escape(repr(wrong))}"):
            build(wrong)


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


def described(path, change):
    """The checkpoint with another description: `change` gets the old one."""
    info = json.loads(path.with_suffix(".json").read_text())
    text = change(info) or json.dumps(info)
    save_file(load_file(path), path, metadata={"weaktr": text})
    return path


CHANGES = {
    "depth": ({"config": {"backbone_args": TINY | {"depth": 10**6}}}, "depth: expected less than"),
    "width": ({"config": {"backbone_args": TINY | {"embed_dim": 10**9}}}, "embed_dim: expected"),
    "largest": ({"config": {"backbone_args": TINY | {"embed_dim": 16383, "depth": 32}}}, "shape"),
    "backbone": ({"config": {"backbone": "vit_giant_patch14_reg4_dinov2"}}, "of another shape"),
    "image": ({"config": {"image_size": 10**9}}, "image_size: expected a whole"),
    "image 2": ({"config": {"image_size": 16380}}, r"pos_embed \(expected \(1, 1368900"),
    "classes": ({"config": {"num_classes": 10**9}}, "num_classes: expected 1 to 254"),
    "one class too many": ({"config": {"num_classes": 255}}, "num_classes: expected 1 to 254"),
    "no classes": ({"config": {"num_classes": True}}, "num_classes: expected 1 to 254, got True"),
    "layers": ({"config": {"drop_path": 2.0}}, "drop_path: expected a number"),
    "fusion": ({"config": {"reduction": 1e-300}}, "reduction: expected a number from 0.001"),
    "fusion 0": ({"config": {"feat_reduction": 0.0}}, "feat_reduction: expected a number from"),
    "unknown": ({"config": {"checkpoint_path": "/etc/passwd"}}, "unknown key 'checkpoint_path'"),
    "type": ({"config": {"backbone": 3}}, "backbone: expected text"),
    "list": ({"config": [1]}, "lacks config"),
    "zero std": ({"normalization": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "std: expected three"),
    "negative std": ({"normalization": {"mean": [0, 0, 0], "std": [1, -1, 1]}}, "std: expected"),
    "tiny std": ({"normalization": {"mean": [0, 0, 0], "std": [1, 1e-300, 1]}}, "std: expected"),
    "NaN": ({"normalization": {"mean": [0, 0, float("nan")], "std": [1, 1, 1]}}, "mean: expected"),
    "infinite": ({"normalization": {"mean": [0, 0, 0], "std": [1, 1, float("inf")]}}, "std"),
    "two means": ({"normalization": {"mean": [0, 0], "std": [1, 1, 1]}}, "mean: expected three"),
    "text mean": ({"normalization": {"mean": "000", "std": [1, 1, 1]}}, "mean: expected three"),
    "no norm": ({"normalization": None}, "lacks normalization"),
    "format": ({"format": "other"}, "expected a description of weaktr-checkpoint"),
    "model": ({"model": "os.system"}, "with model cam, patches, segmenter, got"),
    "unhashable": ({"model": ["cam"]}, "with model cam, patches, segmenter, got"),
    "other model": ({"model": "segmenter"}, "num_labels: expected 1 to 255, got None"),
    "names": ({"classes": {"names": ["a", "b"]}}, "classes: expected 3 names, got 2"),
    "twice": ({"classes": {"names": ["a", "b", "a"]}}, "expected each class once"),
    "control": ({"classes": {"names": ["a", "b", "\x1b[2J"]}}, "names without control characters"),
    "numbers": ({"classes": {"names": [1, 2, 3]}}, "expected a list of names"),
    "no names": ({"classes": 3}, "expected a list of names"),
}  # fmt: skip


def merged(old, new):
    both = isinstance(old, dict) and isinstance(new, dict)
    return old | {k: merged(old.get(k), v) for k, v in new.items()} if both else new


@pytest.mark.parametrize("name", CHANGES)
def test_a_description_of_another_model_builds_nothing(tmp_path, name, monkeypatch):
    """Whatever it says is compared with the tensors before anything is allocated."""
    change, reason = CHANGES[name]
    path = checkpoints.save(cam_model(), tmp_path / "model", classes={"names": ["a", "b", "c"]})
    described(path, lambda info: json.dumps(merged(info, change)))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)  # nothing gets so far
    with pytest.raises(ValueError, match=rf"^checkpoint {path}: .*{reason}") as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"a": NaN'])
def test_a_damaged_description(tmp_path, text):
    path = described(checkpoints.save(cam_model(), tmp_path / "model"), lambda _: text or " ")
    with pytest.raises(ValueError, match=rf"^{path}: (a damaged|expected a) description"):
        checkpoints.load(path)


ADDRESSES = {
    "pretrained": True,
    "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"},
    "pretrained_cfg_overlay": {"file": "/elsewhere/x.pth"},
    "checkpoint_path": "/elsewhere/x.pth",
    "cache_dir": "/elsewhere",
    "features_only": True,
    "pretrained_model_args": {},
    "model_cfg": {},
    "use_naflex": True,
    "block_fn": "os.system",
    "device": "cuda",
    "img_size": 32,
    "class_path": "os.system",
}


@pytest.mark.parametrize("argument", ADDRESSES)
def test_no_argument_of_a_backbone_names_weights(tmp_path, argument, monkeypatch):
    """timm takes files and addresses beside sizes; descriptions and recipes give it sizes alone."""

    def reached(*_, **__):
        raise AssertionError("timm was asked")

    path = checkpoints.save(cam_model(), tmp_path / "model")
    change = {"config": {"backbone_args": TINY | {argument: ADDRESSES[argument]}}}
    described(path, lambda info: json.dumps(merged(info, change)))
    monkeypatch.setattr(timm, "create_model", reached)
    reason = rf"'{argument}' does not describe the network"
    with pytest.raises(ValueError, match=reason):
        checkpoints.load(path)
    with pytest.raises(ValueError, match=reason):
        cam_model(backbone_args=TINY | {argument: ADDRESSES[argument]})
    with pytest.raises(ValueError, match=reason):
        timm_state("deit_small_patch16_224", {argument: ADDRESSES[argument]})


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:a/b",
        "hf_hub:a/b",
        "local-dir:/elsewhere/x",
        "/elsewhere/deit_small_patch16_224",
        "a\nb",
        "",
        "../x",
    ],
)
def test_a_backbone_is_one_of_timms_own(name):
    with pytest.raises(ValueError, match=r"backbone: (timm has no model|expected )"):
        small.cam_model(name, 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"embed_dim": 48.5}, "embed_dim: expected a valid integer"),
        ({"embed_dim": True}, "embed_dim: expected a valid integer"),
        ({"embed_dim": "48"}, "embed_dim: expected a valid integer"),
        ({"depth": 0}, "depth: expected greater than or equal to 1"),
        ({"num_heads": 5}, "cannot be built with .*num_heads"),
        ({"norm_layer": "os.system"}, "norm_layer: "),
        ({"norm_layer": "nothing"}, "cannot be built with .*nothing"),
        ({"act_layer": "nothing"}, "cannot be built with .*nothing"),
        ({"mlp_ratio": 1e9}, "mlp_ratio: expected less than or equal to 64"),
        ({"init_values": float("nan")}, "init_values: expected"),
        ({"swiglu_mlp": True}, "is not a plain ViT"),
    ],
)
def test_arguments_of_a_backbone_have_types_and_bounds(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        small.cam_model("vit_small_patch16_224", 3, backbone_args=TINY | arguments)


def test_settings_of_a_run_in_a_description_are_left_out(tmp_path):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    of_the_run = {"weights": "/etc/passwd", "resize": "bilinear", "attention": "xformers"}
    described(path, lambda info: json.dumps(merged(info, {"config": of_the_run})))
    config = checkpoints.load(path)[0].config
    assert (config.weights, config.resize, config.attention) == (None, "timm", None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    state = load_file(path)
    state["vit.blocks.1.mlp.fc1.bias"] = state["vit.blocks.1.mlp.fc1.bias"].double()
    state["vit.blocks.1.mlp.fc1.bias"][3] = value
    save_file(state, path, metadata={"weaktr": path.with_suffix(".json").read_text()})
    with pytest.raises(ValueError, match=rf"{path}: not finite: vit\.blocks\.1\.mlp\.fc1\.bias"):
        checkpoints.load(path)
    with pytest.raises(ValueError, match=rf"{path}: not finite: blocks\.1\.mlp\.fc1\.bias"):
        cam_model(weights=path)
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: not finite: blocks\.1\.mlp\.fc1\.bias"):
        cam_model(weights=tmp_path / "x.pth")


def test_quantised_weights_are_no_weights(tmp_path):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    state = load_file(path)
    state["head.bias"] = state["head.bias"].to(torch.int8)
    save_file(state, path, metadata={"weaktr": path.with_suffix(".json").read_text()})
    with pytest.raises(ValueError, match=r"1 of another type: head\.bias \(torch\.int8\)"):
        checkpoints.load(path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_checkpoints_have_the_mode_of_new_files(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = checkpoints.save(cam_model(), tmp_path / "model")
        save_state(tmp_path / "state.pt", {"step": 3})
    finally:
        os.umask(before)
    for file in (path, path.with_suffix(".json"), tmp_path / "state.pt"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_paths_that_are_no_checkpoint(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="no file"):
        checkpoints.load(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"expected a checkpoint's file such as .* got a folder$"):
        checkpoints.load(folder)
    checkpoints.save(cam_model(), folder / "model")
    with pytest.raises(ValueError, match=rf"got a folder; here it is {folder}/model\.safetensors"):
        checkpoints.load(folder)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(
        ValueError, match=r"notes\.txt: not a checkpoint of weaktr, expected a file"
    ):
        checkpoints.load(tmp_path / "notes.txt")
    (tmp_path / "notes.safetensors").write_text("notes")
    with pytest.raises(ValueError, match=r"notes\.safetensors: not a whole safetensors file"):
        checkpoints.load(tmp_path / "notes.safetensors")
    with pytest.raises(ValueError, match=r"weights: .*notes\.safetensors: not a whole safetensors"):
        cam_model(weights=tmp_path / "notes.safetensors")


HEADERS = {
    "longer than the file": (10**12, "{}"),
    "reaches out": (None, '{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'),
    "overlaps": (None, '{"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
                 '"y": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'),
    "huge": (None, '{"x": {"dtype": "F32", "shape": [99999999999999999999], '
             '"data_offsets": [0, 4]}}'),
    "product": (None, '{"x": {"dtype": "U8", "shape": [4294967296, 4294967296], '
                '"data_offsets": [0, 0]}}'),
    "negative": (None, '{"x": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}'),
    "unknown type": (None, '{"x": {"dtype": "Q3", "shape": [4], "data_offsets": [0, 4]}}'),
    "metadata": (None, '{"__metadata__": {"weaktr": {"a": 1}}}'),
    "no JSON": (None, "{"),
    "no text": (None, "\xff\xfe"),
    "nested": (None, "[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_safetensors_that_lie(tmp_path, name):
    size, text = HEADERS[name]
    header = text.encode("latin1")
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size or len(header)) + header + bytes(4))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoints.load(path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        cam_model(weights=path)


def test_stage_2_starts_from_a_stage_1_checkpoint(tmp_path):
    source = cam_model()
    path = checkpoints.save(source, tmp_path / "model")
    arguments = {"image_size": 98, "backbone_args": TINY, "weights": path}
    target = small.segmenter("vit_small_patch14_reg4_dinov2", 4, **arguments)
    theirs, ours = source.vit.state_dict(), target.vit.state_dict()
    torch.testing.assert_close(ours["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
    torch.testing.assert_close(ours["cls_token"], theirs["cls_token"].mean(1, keepdim=True))
    assert ours["pos_embed"].shape == (1, 49, 48)


def test_weights_of_images_that_were_normalised_otherwise_are_refused(tmp_path):
    """DeiT and AugReg have the same shapes, by which nothing would tell."""
    sizes = {"image_size": 64, "backbone_args": TINY}
    imagenet = r"mean / std 0\.485, 0\.456, 0\.406 / 0\.229, 0\.224, 0\.225"
    told = rf"takes images normalised by {imagenet}, and vit_small_patch16_224 by 0\.5, .* deit_\*"
    own = small.cam_model("deit_small_patch16_224", 3, reduction=2.0, **sizes)
    ours = checkpoints.save(own, tmp_path / "ours")
    published = tmp_path / "published.pth"
    fusion = {"adaptive_attention_fusion.attn_head_ffn.0.weight": torch.zeros(2, 2)}
    torch.save({"model": own.vit.state_dict() | fusion}, published)
    for weights in (ours, published):
        small.segmenter("deit_small_patch16_224", 4, weights=weights, **sizes)
        with pytest.raises(ValueError, match=told):
            small.segmenter("vit_small_patch16_224", 4, weights=weights, **sizes)
    own.vit.normalization = ((0.5,) * 3,) * 2  # as an imported AugReg model's
    of_augreg = checkpoints.save(own, tmp_path / "augreg")
    small.segmenter("vit_small_patch16_224", 4, weights=of_augreg, **sizes)


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


@pytest.mark.parametrize("backbone", ["deit_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(
    ("stage", "more"), [(small.cam_model, {"reduction": 2.0}), (small.segmenter, {})]
)
def test_weights_that_lost_their_class_token_are_refused(tmp_path, backbone, prefix, stage, more):
    sizes = {"image_size": 64, "backbone_args": TINY}
    state = dict(small.segmenter(backbone, 4, **sizes).vit.state_dict())
    del state["cls_token"]
    patches = state["pos_embed"][:, -((64 // (16 if "16" in backbone else 14)) ** 2) :]
    state["pos_embed"] = torch.cat([torch.zeros(1, prefix, 48), patches], 1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the model; 1 missing: cls_token$"):
        stage(backbone, 4, weights=tmp_path / "w.safetensors", **sizes, **more)


def test_class_tokens_of_a_backbone_that_has_none_start_at_random(tmp_path, caplog):
    sizes = {"image_size": 64, "backbone_args": TINY}
    state = small.segmenter("vit_base_patch16_siglip_224", 4, **sizes).vit.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level("WARNING", "weaktr"):
        weights = tmp_path / "w.safetensors"
        small.cam_model("vit_base_patch16_siglip_224", 4, weights=weights, reduction=2.0, **sizes)
    assert "class tokens start at random" in caplog.text


def test_a_class_token_without_a_position_keeps_its_value(tmp_path):
    """As in timm with `no_embed_class`: nothing is added to it, so its position is zero."""
    source = small.segmenter(
        "deit_small_patch16_224", 4, image_size=64, backbone_args=TINY | {"no_embed_class": True}
    )
    save_file(source.vit.state_dict(), tmp_path / "w.safetensors")
    target = small.segmenter(
        "deit_small_patch16_224",
        4,
        image_size=64,
        backbone_args=TINY,
        weights=tmp_path / "w.safetensors",
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target.eval().vit(images), source.eval().vit(images))


def test_backbone_of_another_width_is_refused_by_name(tmp_path):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"of another shape: .*expected \(1, 3, 96\)"):
        cam_model(weights=path, backbone_args=TINY | {"embed_dim": 96})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_embed.proj.weight", torch.zeros(48, 3, 65, 65)),
        ("patch_embed.proj.weight", torch.zeros(48, 3, 7, 9)),
        ("patch_embed.proj.weight", torch.zeros(48)),
        ("cls_token", torch.zeros(48)),
        ("pos_embed", torch.zeros(48)),
        ("pos_embed", torch.zeros(1, 0, 48)),
        ("pos_embed", torch.zeros(1, 26, 7)),
        ("reg_token", torch.tensor(1.0)),
        ("norm.weight", torch.zeros(48, 1)),
        ("patch_embed.proj.weight", torch.tensor(1.0)),
        ("patch_embed.proj.weight", torch.zeros(48, 3, 0, 0)),
        ("cls_token", torch.tensor(1.0)),
        ("cls_token", torch.zeros(1, 0, 48)),
        ("dist_token", torch.tensor(1.0)),
        ("register_tokens", torch.zeros(48)),
    ],
)
def test_backbones_of_odd_shapes_are_refused(tmp_path, name, value):
    state = cam_model().vit.state_dict() | {name: value}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"^backbone weights .*x\.pth: ") as caught:
        cam_model(weights=tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"image_size": None}, "two numbers of pixels, got None"),
        ({"image_size": "ab"}, "two numbers of pixels, got 'ab'"),
        ({"image_size": True}, "two numbers of pixels, got True"),
        ({"image_size": 1 << 70}, "two numbers of pixels, got 118059"),
        ({"image_size": [64, 0]}, r"two numbers of pixels, got \[64, 0\]"),
        ({"image_size": [64] * 3}, "two numbers of pixels, got"),
        ({"image_size": {"a": 1}}, "two numbers of pixels, got a dict"),
        ({}, "two numbers of pixels, got None"),
        ("ab", "two numbers of pixels, got 'ab'"),
        ([1], r"two numbers of pixels, got \[1\]"),
    ],
)
def test_descriptions_of_backbones_without_a_size(tmp_path, config, reason):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    described(path, lambda info: info.update(config=config))
    with pytest.raises(ValueError, match=f"^backbone weights {path}: .*{reason}") as caught:
        cam_model(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(48, 3, 0, 0), (5,), ()])
def test_patches_of_no_size_in_a_checkpoint_of_ours(tmp_path, shape):
    path = checkpoints.save(cam_model(), tmp_path / "model")
    text = path.with_suffix(".json").read_text()
    state = load_file(path) | {"vit.patch_embed.proj.weight": torch.zeros(shape)}
    save_file(state, path, metadata={"weaktr": text})
    with pytest.raises(ValueError, match=rf"{path}: patch_embed\.proj\.weight: expected 4 sides"):
        cam_model(weights=path)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"model": {"x": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"mkdir, which could run code\. Nothing was run"):
        cam_model(weights=tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()
