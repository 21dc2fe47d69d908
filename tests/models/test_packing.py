"""CAMs of images of different sizes in one pass: what each image alone gives, for every family."""

from __future__ import annotations

import pytest
import torch

from tests.models import small
from tests.models.test_families import CAM, FAMILIES
from tests.tolerances import assert_close, assert_golden
from weaktr.models.cam import PIECE, ChosenClasses, pieces_of, sum_of_maps
from weaktr.ops import registry as backends

CLASSES = [(0, 3), (2,), (), (1, 0, 2), (3,)]


def images_for(model, *sizes):
    return [torch.randn(3, *(side * model.patch_size + 5 for side in size)) for size in sizes]


def assert_all_golden(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        if len(other):
            assert_golden(one, other)


def alone(model, images, classes, **settings):
    """Each image by itself through `CamModel.cams`."""
    cams = []
    for image, own in zip(images, classes, strict=True):
        labels = torch.zeros(1, model.num_classes)
        labels[0, list(own)] = 1
        cams.append(model.cams(image[None], labels, **settings)[0, list(own)])
    return cams


@pytest.mark.parametrize("family", FAMILIES)
def test_images_together_give_what_each_gives_alone(family):
    model = small.cam_model(family, 4, patch_norm="dino" in family, **CAM).eval()
    images = images_for(model, (3, 4), (3, 4), (2, 2), (5, 3), (1, 1))
    together = model.cams_of_sizes(images, CLASSES)
    assert_all_golden(together, alone(model, images, CLASSES))


@pytest.mark.parametrize("attention_type", ["fused", "coarse", "transcam"])
@pytest.mark.parametrize("refine", [True, False])
def test_every_kind_of_cam(attention_type, refine):
    model = small.cam_model("deit_small_patch16_224", 4, pool="avg", **CAM).eval()
    images = images_for(model, (3, 4), (2, 2), (5, 3), (5, 3), (1, 4))
    settings = {"attention_type": attention_type, "refine": refine}
    together = model.cams_of_sizes(images, CLASSES, **settings)
    assert_all_golden(together, alone(model, images, CLASSES, **settings))


def test_triton_gives_the_same(monkeypatch):
    pytest.importorskip("weaktr.kernels", exc_type=ImportError)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    images = images_for(model, (3, 4), (2, 2), (5, 3), (5, 3), (1, 4))
    expected = model.cams_of_sizes(images, CLASSES)
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "triton")
    together = model.to(device).cams_of_sizes([image.to(device) for image in images], CLASSES)
    assert_all_golden([cams.cpu() for cams in together], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    images = images_for(model, (3, 4), (2, 2))
    exact = model.cams_of_sizes(images, CLASSES[:2])
    with torch.autocast("cpu", dtype=dtype):
        cams = model.cams_of_sizes(images, CLASSES[:2])
    for half, one in zip(cams, exact, strict=True):
        assert half.dtype == torch.float32
        assert (half - one).abs().max() < 0.05 * one.abs().max()


def test_the_head_on_a_cpu_gives_the_same_bits_whatever_is_in_the_pass():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    images = images_for(model, (6, 5), (6, 5), (9, 8), (9, 8), (2, 5))

    def coarse(images, classes):
        encoded = model.encode_sizes(images, with_attention=False)
        groups = model.cams_of_groups(encoded, classes, attention_type="coarse", refine=False)
        each = [cams for group in groups for cams in group]
        cams = [maps[: len(own)] for own, maps in zip(classes, each, strict=True)]
        return list(zip(cams, model.class_probabilities(encoded), strict=True))

    for place, together in enumerate(coarse(images, CLASSES)):
        (by_itself,) = coarse([images[place]], [CLASSES[place]])
        assert all(map(torch.equal, together, by_itself))


def test_scores_of_groups_are_those_of_images():
    """Of groups with all their classes, as on a GPU."""
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    groups = [torch.randn(2, 48, 3, 4), torch.randn(3, 48, 2, 2)]
    chosen = ChosenClasses(CLASSES, [12] * 2 + [4] * 3, torch.device("cpu"))
    with torch.no_grad():
        together = model._scores_together(groups, chosen)
        assert_close(together, model._scores_one_by_one(groups, chosen), "float32")


def test_sums_of_maps_on_a_cpu_do_not_depend_on_the_place():
    maps = torch.randn(72, 3, 50)
    total = sum_of_maps(maps)
    assert_close(total, maps.sum(0), "float32")
    for start in range(50):
        assert torch.equal(sum_of_maps(maps[:, :2, start:]), total[:2, start:])


def test_no_image_and_wrong_arguments():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM).eval()
    assert model.cams_of_sizes([], []) == []
    images = images_for(model, (2, 2))
    with pytest.raises(ValueError, match=r"classes: expected one list per image \(1\), got 2"):
        model.cams_of_sizes(images, [(0,), (1,)])
    with pytest.raises(ValueError, match=r"attention_type: expected one of"):
        model.cams_of_sizes(images, [(0,)], attention_type="plain")
    with pytest.raises(ValueError, match=r"H, W >= 16 \(one patch\)"):
        model.cams_of_sizes([torch.zeros(3, 15, 40)], [(0,)])


@pytest.mark.parametrize(
    ("pool", "dtype"), [("max", torch.float32), ("max", torch.bfloat16), ("avg", torch.float32)]
)
def test_pooling_together_is_pooling_image_by_image(pool, dtype):
    """In pieces, as on a GPU; an image may be several, one or a part of one."""
    model = small.cam_model(
        "vit_tiny_patch16_224", 3, image_size=32, pool=pool, reduction=1, feat_reduction=1,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    lengths = [10, 2 * PIECE, 1, 3 * PIECE + 7]
    attended = torch.randn(1, sum(lengths), 16).to(dtype)
    expected = model.pooled(attended, lengths)
    actual = model.pooled(attended, pieces_of(lengths, attended.device))
    assert actual.shape == (4, 2, 8) and actual.dtype == dtype
    assert_close(actual, expected, "float32")
