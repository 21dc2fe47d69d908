"""Every backbone family in both stages, at sizes that are neither square nor whole patches."""

from __future__ import annotations

import pytest
import timm
import torch

from tests.models import small
from tests.tolerances import assert_golden
from weaktr.config import BackboneConfig
from weaktr.models import ViT, checkpoints

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
CAM = {"image_size": 64, "reduction": 2.0, "backbone_args": TINY}
#: timm name -> prefix tokens of its own (class + register)
FAMILIES = {
    "deit_small_patch16_224": 1,
    "vit_small_patch16_384.augreg_in21k_ft_in1k": 1,
    "vit_small_patch14_dinov2.lvd142m": 1,
    "vit_small_patch14_reg4_dinov2.lvd142m": 5,
    "eva02_small_patch14_224.mim_in22k": 1,
    "vit_small_patch16_dinov3": 5,
    "vit_base_patch16_siglip_224": 0,
    "vit_small_patch16_rope_mixed_224": 1,
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_tokens_equal_timms_own_forward(family):
    """Same weights, same tokens as timm: attention, rotary embedding, positions, registers."""
    theirs = timm.create_model(
        family, num_classes=0, global_pool="", img_size=64, dynamic_img_size=True, **TINY
    ).eval()
    ours = ViT(BackboneConfig(family, image_size=64, backbone_args=TINY)).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and not unexpected
    patch = ours.patch_size
    images = torch.randn(2, 3, 4 * patch, 6 * patch)
    with torch.no_grad():
        assert_golden(ours(images), theirs.forward_features(images))


def test_weights_of_a_file(family, tmp_path):
    """Those of timm start stage 1, whose checkpoint starts stage 2, learnt frequencies included."""
    bare, stage1 = tmp_path / "bare.pth", tmp_path / "model.safetensors"
    theirs = timm.create_model(family, num_classes=0, global_pool="", img_size=64, **TINY)
    torch.save(theirs.state_dict(), bare)
    cam = small.cam_model(family, 4, weights=str(bare), **CAM)
    checkpoints.save(cam, stage1)
    segmenter = small.segmenter(family, 5, weights=str(stage1), image_size=64, backbone_args=TINY)
    expected = theirs.state_dict()
    for vit in (cam.vit, segmenter.vit):
        for name, value in vit.state_dict().items():
            if name not in ("cls_token", "pos_embed"):  # of as many class tokens as there are
                assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("size", [(64, 64), (50, 91)])
def test_both_stages(family, size):
    images = torch.randn(2, 3, *size)
    cam = small.cam_model(family, 4, **CAM)
    grid = (size[0] // cam.patch_size, size[1] // cam.patch_size)
    output = cam(images)
    assert all(logits.shape == (2, 4) for logits in output)
    sum(logits.square().sum() for logits in output).backward()
    unused = {n for n, p in cam.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused
    cams = cam.eval().cams(images, torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]]))
    assert cams.shape == (2, 4, *grid) and cams.isfinite().all() and (cams >= 0).all()
    assert cams[0, 3].any() and not cams[:, 1:3].any() and not cams[1, 0].any()

    segmenter = small.segmenter(family, 5, image_size=64, backbone_args=TINY)
    assert segmenter.vit.num_prefix_tokens == FAMILIES[family]
    logits = segmenter(images)
    assert logits.shape == (2, 5, *size)
    labels = torch.randint(0, 5, (2, *size))
    segmenter.loss(images, labels).loss.backward()
    assert all(p.grad is not None for p in segmenter.parameters() if p.requires_grad)


def test_fine_logits_are_the_mean_of_the_refined_cams(family):
    """The cheap formula of training and the explicit refinement of inference agree."""
    model = small.cam_model(family, 3, **CAM).eval()
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert_golden(model(images).fine_logits, model.cams(images).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(family, dtype):
    torch.manual_seed(0)
    model = small.cam_model(family, 3, **CAM).eval()
    images = torch.randn(2, 3, 64, 64)
    exact = model.cams(images)
    with torch.autocast("cpu", dtype=dtype):
        output, cams = model(images), model.cams(images)
    assert cams.dtype == torch.float32
    assert all(logits.isfinite().all() for logits in output)
    assert (cams - exact).abs().max() < 0.05 * exact.abs().max()


def test_whole_labels_equal_present_classes_only():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0]])
    for kind in ("fused", "coarse", "transcam"):
        for refine in (True, False):
            settings = {"attention_type": kind, "refine": refine}
            every = model.cams(images, **settings) * labels[:, :, None, None]
            assert_golden(model.cams(images, labels, **settings), every)


def test_cams_in_double_precision():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model.cams(images)
    cams = model.double().cams(images.double())
    assert cams.dtype == torch.float32
    assert_golden(cams, expected)


def test_cams_of_no_image_are_refused():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    with pytest.raises(ValueError, match="images: expected at least one"):
        model.cams(torch.zeros(0, 3, 64, 64))


def test_image_without_labels_has_empty_cams():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    assert not model.cams(torch.randn(1, 3, 64, 64), torch.zeros(1, 4)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "no_such_model"}, "timm has no model"),
        ({"backbone": "resnet18"}, "not a plain ViT"),
        ({"pool": "sum"}, "pool: expected one of"),
        ({"num_classes": 0}, "num_classes: expected 1 to 254, got 0"),
        ({"num_classes": 255}, "num_classes: expected 1 to 254, got 255"),
        ({"reduction": 100.0}, "reduction: expected at most 6"),
        ({"position": "sine"}, "position: expected one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given = {"backbone": "deit_small_patch16_224", "num_classes": 3} | CAM
    with pytest.raises(ValueError, match=message):
        small.cam_model(**(given | arguments))


def test_image_below_one_patch_is_refused():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM)
    with pytest.raises(ValueError, match=r"H, W >= 16 \(one patch\)"):
        model(torch.zeros(1, 3, 15, 64))
