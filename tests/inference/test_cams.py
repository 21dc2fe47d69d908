"""CAMs over scales and flips against the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from tests.parity.test_cam import TYPES, model_of
from tests.stored import FACTS, arrays
from tests.tolerances import assert_golden
from weaktr.config import LabelConfig
from weaktr.data import Sample
from weaktr.inference import cams as stage
from weaktr.inference.cams import CamsOfModel, multi_scale_cams

B = arrays("B_multiscale_cam")
CASES = FACTS["B_multiscale_cam"]["cases"]


def cams_of(model, images, classes, settings):
    """CAMs float32 [K, H, W] of images in memory that go through the model together."""
    source = CamsOfModel(model, settings)
    inputs = [
        source.inputs(Sample(str(index), None, tuple(own), None, ""), image)
        for index, (image, own) in enumerate(zip(images, classes, strict=True))
    ]
    return [cams.maps for cams in together(source, inputs)]


def together(source, batch):
    """The CAMs of a batch in one pass, as on a GPU."""
    return multi_scale_cams(
        source.model,
        [one.parts for one in batch],
        [one.photograph.size for one in batch],
        [one.sample.labels for one in batch],
        source.settings,
        with_features=source.with_features,
    )


def published_cams(case, copies=1):
    facts = CASES[case]
    model = model_of(f"A_{facts['model']}").eval()
    images = [B[f"image.{facts['image']}"]] * copies
    settings = LabelConfig(
        scales=facts["scales"],
        attention_type=TYPES[facts["attention_type"]],
        refine=facts["patch_attn_refine"],
    )
    return cams_of(model, images, [B[f"{case}.keys"].tolist()] * copies, settings)


@pytest.mark.parametrize("case", CASES)
def test_cams_are_the_published_ones(case):
    (cams,) = published_cams(case)
    expected = torch.from_numpy(B[f"{case}.cam"])
    step = cams.shape[-1] // expected.shape[-1]  # some are stored at every second pixel
    assert_golden(cams[..., ::step, ::step], expected)


@pytest.mark.parametrize("name", [key for key in B if key.startswith("resized.")])
def test_images_are_resized_as_published(name):
    _, picture, scale = name.split(".", 2)
    image = Image.fromarray(B[f"image.{picture}"])
    size = round(image.width * float(scale)), round(image.height * float(scale))
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized, B[name])


def test_a_batch_gives_what_single_images_give():
    case = "voc_flower_s1.0_1.2_transcam"
    one, two = published_cams(case, copies=2)
    assert_golden(one, torch.from_numpy(B[f"{case}.cam"]))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_each_image_of_a_batch_has_its_own_classes():
    model = model_of("A_a2_voc20_max").eval()
    images = [B["image.flower"], B["image.flower"][:, ::-1].copy()]
    settings = LabelConfig(scales=(1.0,))
    both = cams_of(model, images, [(0, 5), ()], settings)
    (alone,) = cams_of(model, images[:1], [(0, 5)], settings)
    assert both[1].shape == (0, 75, 100)
    np.testing.assert_allclose(both[0], alone, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2 * 3 * 40 * 56 * 2, 2**27])
def test_images_of_one_size_are_enlarged_some_at_a_time(most, tiny_model, monkeypatch):
    """Neighbours with different numbers of classes, seen in four views; the same bits each time."""
    rng = np.random.default_rng(0)
    classes = [(0,), (0, 1), (), (1,), ()]
    images = [rng.integers(0, 255, (40, 56, 3), np.uint8) for _ in classes[:-1]]
    images.append(rng.integers(0, 255, (56, 40, 3), np.uint8))
    settings = LabelConfig(scales=(1.0, 1.5))
    expected = cams_of(tiny_model, images, classes, settings)
    monkeypatch.setattr(stage, "MOST_VALUES", most)
    found = cams_of(tiny_model, images, classes, settings)
    for one, other, own, image in zip(found, expected, classes, images, strict=True):
        assert one.shape == (len(own), *image.shape[:2]) and torch.equal(one, other)
        assert not len(own) or (one.amax((1, 2)) > 0.9).all()


SIDES = [(80, 112), (80, 112), (200, 112), (80, 48)]


def some_inputs(source):
    rng = np.random.default_rng(0)
    return [
        source.inputs(
            Sample(str(index), None, (index % 2,), None, ""),
            rng.integers(0, 255, (*side, 3), np.uint8),
        )
        for index, side in enumerate(SIDES)
    ]


@pytest.mark.parametrize(("settings", "sizes"), [
    ({"batch_size": 16}, [4]),
    ({"batch_size": 3}, [3, 1]),
    ({"batch_tokens": 1}, [1, 1, 1, 1]),
    ({"batch_tokens": 2 * 2 * 7 * 5}, [2, 1, 1]),
])  # fmt: skip
def test_batches_on_a_gpu_are_as_large_as_the_settings_say(
    settings, sizes, tiny_model, monkeypatch
):
    monkeypatch.setattr(stage, "gpu_tokens", lambda device: stage.GPU_TOKENS)
    source = CamsOfModel(tiny_model, LabelConfig(scales=(1.0, 0.5), **settings))
    source.device = torch.device("cuda")  # nothing is computed
    batches = [[]]
    for one in some_inputs(CamsOfModel(tiny_model, source.settings)):
        if batches[-1] and not source.fits(batches[-1], one):
            batches.append([])
        batches[-1].append(one)
    assert list(map(len, batches)) == sizes


def test_images_of_one_size_are_neighbours_in_the_model_alone(tiny_model, monkeypatch):
    """On a GPU; the CAMs come in the order of the batch."""
    source = CamsOfModel(tiny_model, LabelConfig())
    batch = some_inputs(source)
    seen = []

    def together(batch):
        seen.extend(one.photograph.pixels.shape[:2] for one in batch)
        return [one.sample.name for one in batch]

    monkeypatch.setattr(source, "_cams_together", together)
    source.device = torch.device("cuda")  # nothing is computed
    assert source.cams([batch[i] for i in (2, 0, 3, 1)]) == ["2", "0", "3", "1"]
    assert seen == [(80, 48), (80, 112), (80, 112), (200, 112)]


def test_images_of_any_sizes_go_through_the_model_together(tiny_model, monkeypatch):
    """The same CAMs as one image at a time; on a CPU the same bits, whatever the batch."""
    source = CamsOfModel(tiny_model, LabelConfig(scales=(1.0, 0.5)))
    batch = some_inputs(source)
    alone = [cams.maps for one in batch for cams in source.cams([one])]
    assert all(map(torch.equal, alone, (cams.maps for cams in source.cams(batch))))
    monkeypatch.setattr(stage, "_normalise", lambda maps: maps)  # it enlarges rounding
    alone = [cams.maps for one in batch for cams in source.cams([one])]
    for one, cams in zip(alone, together(source, batch), strict=True):
        assert_golden(cams.maps, one)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (70, 2)])
def test_an_image_smaller_than_a_patch_is_enlarged_to_one(size, tiny_model):
    (cams,) = cams_of(tiny_model, [np.zeros((*size, 3), np.uint8)], [(0,)], LabelConfig())
    assert cams.shape == (1, *size)
    assert torch.isfinite(cams).all()


def test_a_map_that_is_the_same_everywhere_shows_no_class():
    """Such as that of a single patch, which differs in the last bits where it is enlarged."""
    torch.manual_seed(0)
    model = small.tiny_cam_model()
    model.head.weight.data.mul_(100)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    (cams,) = cams_of(model, [pixels], [(0, 1)], LabelConfig())
    assert not cams.any()
    flat = torch.full((5, 7), 731.3)
    flat[::2, 1::3] += flat[0, 0] * 2**-23
    slope = torch.linspace(1, 1.0001, 35).reshape(5, 7)
    found = stage._normalise(torch.stack([flat, slope, torch.zeros(5, 7)]))
    assert not found[0].any() and not found[2].any()
    assert torch.equal(found[1], (slope - slope.min()) / (slope.max() - slope.min() + 1e-8))


@pytest.mark.parametrize("settings", [
    {"scales": (1.0, 0.5), "flip": True, "attention_type": "fused"},
    {"scales": (0.5, 1.0, 1.5), "flip": False, "attention_type": "coarse", "refine": False},
])  # fmt: skip
def test_features_are_those_of_the_photograph_at_the_first_scale(settings, patch_norm):
    model = small.tiny_cam_model(patch_norm=patch_norm)
    source = CamsOfModel(model, LabelConfig(**settings), with_features=True)
    batch = some_inputs(source)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.normalization)
    given = zip(batch, source.cams(batch), together(source, batch), strict=True)
    for one, alone, of_batch in given:
        pixels = one.parts[0].permute(2, 0, 1).float() / 255
        embedded = model.vit.embed(((pixels - mean) / std)[None])
        tokens = model.vit.run_block(0, embedded.tokens, embedded).tokens
        patches = (model.vit.norm(tokens) if patch_norm else tokens)[0, model.num_classes :]
        expected = patches.T.unflatten(1, embedded.grids[0])
        assert_golden(alone.features, expected)
        assert_golden(of_batch.features, expected)
    plain = CamsOfModel(model, LabelConfig(**settings))
    assert [cams.features for cams in plain.cams(batch)] == [None] * len(batch)


@pytest.fixture(params=[False, True], ids=["plain", "patch_norm"])
def patch_norm(request):
    return request.param


@pytest.fixture
def tiny_model():
    return small.tiny_cam_model()
