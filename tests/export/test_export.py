"""``weaktr export``: what other runtimes compute is what the model computes, at any size."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from tests.models import small
from tests.tolerances import assert_close
from weaktr import cli, export
from weaktr.models import CamModel, checkpoints, vit
from weaktr.models.positions import resized_position, upsampling_matrix
from weaktr.models.released.state_dicts import CLIP

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3}
NAMES = ["cat", "dog", "emu"]
GRIDS = [(4, 4), (14, 14), (1, 1), (3, 9), (2, 8), (7, 28), (30, 17)]


def segmenter(backbone="deit_small_patch16_224", **changes):
    arguments = {"image_size": 64, "decoder_layers": 1, "backbone_args": TINY} | changes
    return small.segmenter(backbone, 4, **arguments).eval()


def cam_model(backbone="deit_small_patch16_224", **changes):
    arguments = {"image_size": 64, "reduction": 1.0, "backbone_args": TINY} | changes
    return small.cam_model(backbone, 3, **arguments).eval()


def needs_onnx():
    for name in export.ONNX_PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install weaktr[export]")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("stored_grid", [(4, 4), (14, 14), (2, 8)])
def test_positions_without_branches_are_those_with(grid, stored_grid):
    stored = torch.randn(1, stored_grid[0] * stored_grid[1], 5)
    for size in ((grid[0] * 16, grid[1] * 16), (grid[0] * 16 + 5, grid[1] * 16 + 3)):
        expected = {
            "timm": resample_abs_pos_embed(
                stored, list(grid), list(stored_grid), num_prefix_tokens=0
            ),
            "published_cam": vit._published_cam_position(stored, grid, size, stored_grid),
            "published_seg": vit._published_seg_position(stored, grid, stored_grid),
        }
        assert expected.keys() == set(vit.POSITION_MODES)
        if expected["timm"] is stored and grid != stored_grid:
            del expected["timm"]  # older versions take as many tokens for the same grid
        for mode, wanted in expected.items():
            actual = resized_position(stored, stored_grid, grid, size, mode)
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_upsampling_is_bilinear():
    values = torch.randn(1, 1, 7)
    expected = F.interpolate(values, size=7 * 16, mode="linear", align_corners=False)[0, 0]
    for length in (7 * 16, 7 * 16 - 13):
        assert_close(upsampling_matrix(length, 7, 16) @ values[0, 0], expected[:length], "float32")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: segmenter(position="published_seg", decoder="linear"), marks=pytest.mark.rare
        ),
        lambda: cam_model("vit_small_patch14_reg4_dinov2", image_size=70),
    ],
    ids=["published segmenter", "CAMs of DINOv2 with registers"],
)
def test_torch_export_takes_every_size(tmp_path, model):
    model = model()
    path = tmp_path / "model.pt2"
    names = NAMES if isinstance(model, CamModel) else ["background", *NAMES]
    check = export.export_program(model, path, names)
    assert check.difference <= 1e-4 * check.magnitude and len(check.shapes) == 4
    extra = {export.DESCRIPTION: ""}
    run = torch.export.load(path, extra_files=extra).module()
    facts = json.loads(extra[export.DESCRIPTION])
    assert facts["classes"] == names and facts["mean"] == list(model.normalization[0])
    export.compare(model, run, ((2, 33, 75), (1, 100, 64)))


def test_onnx_segmenter_through_the_command(tmp_path, caplog):
    needs_onnx()
    import onnx

    model = segmenter("eva02_small_patch14_224", patch_size=16, position="published_seg")
    model.vit.normalization = CLIP
    saved = checkpoints.save(model, tmp_path / "model", classes={"names": NAMES})
    path = tmp_path / "deep" / "model.onnx"
    assert cli.main(["export", str(saved), "--onnx", str(path), "--ensemble", "published"]) == 0
    facts = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(facts["classes"]) == ["background", *NAMES]
    assert json.loads(facts["std"]) == list(CLIP[1])
    session = session_of(path)
    assert [out.name for out in session.get_outputs()] == ["early", "logits"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[1].shape == ["batch", 4, "height", "width"]
    for batch, height, width in ((1, 64, 64), (3, 32, 128), (2, 77, 50)):
        images = np.random.default_rng(0).standard_normal((batch, 3, height, width), np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], expected,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.rare
def test_onnx_cams(tmp_path):
    needs_onnx()
    model = cam_model(position="published_cam", pool="avg")
    check = export.export_onnx(model, tmp_path / "cams.onnx", NAMES)
    assert check.difference <= 1e-4 * check.magnitude
    session = session_of(tmp_path / "cams.onnx")
    images = torch.randn(2, 3, 70, 49)
    (cams,) = session.run(None, {"images": images.numpy()})
    expected = model.cams(images)
    assert cams.shape == expected.shape == (2, 3, 4, 3)
    torch.testing.assert_close(
        torch.from_numpy(cams), expected, rtol=1e-4, atol=1e-4 * expected.max().item()
    )


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_a_backbone_that_needs_one_size_says_so(tmp_path):
    arguments = TINY | {"embed_dim": 96}
    changes = {"backbone_args": arguments, "decoder": "linear"}
    model = segmenter("vit_small_patch16_dinov3", **changes)
    with pytest.raises(ValueError, match="choose one with --size"):
        export.export_program(model, tmp_path / "model.pt2", ["background", *NAMES])
    check = export.export_program(
        model, tmp_path / "model.pt2", ["background", *NAMES], size=(64, 48)
    )
    assert check.shapes == ((1, 64, 48), (2, 64, 48))


def test_a_model_that_computes_something_else_is_refused():
    model = segmenter()
    with pytest.raises(ValueError, match="differs from the model by"):
        export.compare(model, lambda images: [model(images) + 0.01], ((1, 64, 64),))
    with pytest.raises(ValueError, match="differs from the model by nan"):
        export.compare(model, lambda images: [model(images) * np.nan], ((1, 64, 64),))
    with pytest.raises(ValueError, match=r"gives \(1, 4, 4, 4\)"):
        export.compare(model, lambda images: [model.patch_logits(images)], ((1, 64, 64),))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    with pytest.raises(ValueError, match=r"onnx, onnxscript, onnxruntime: pip install 'weaktr\[ex"):
        export.export_onnx(cam_model(), tmp_path / "cams.onnx", NAMES)
    assert not (tmp_path / "cams.onnx").exists()


@pytest.mark.parametrize(
    ("classes", "arguments", "problem"),
    [
        ({"classes": {"names": NAMES}}, [], "nothing to write"),
        ({}, ["--torch-export", "x.pt2"], "does not name its classes"),
        (
            {"classes": {"names": NAMES}},
            ["--torch-export", "x.pt2", "--ensemble", "published"],
            "only stage 2",
        ),
        *(
            (
                {"classes": {"names": NAMES}},
                ["--torch-export", "x.pt2", "--size", *size],
                f"expected two sides from a patch, 16 pixels, to 65536, got {' '.join(size)}",
            )
            for size in (("-1", "5"), ("0", "0"), ("15", "16"), ("1000000", "1000000"))
        ),
    ],
)
def test_mistakes_are_told(tmp_path, classes, arguments, problem):
    saved = checkpoints.save(cam_model(), tmp_path / "model", **classes)
    with pytest.raises(ValueError, match=problem):
        cli.main(["export", str(saved), *arguments, "--debug"])
