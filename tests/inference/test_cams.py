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
from weaktr.inference.cams import image_cams, multi_scale_cams

B = arrays("B_multiscale_cam")
CASES = FACTS["B_multiscale_cam"]["cases"]


def published_cams(case, copies=1):
    facts = CASES[case]
    model = model_of(f"A_{facts['model']}").eval()
    images = np.stack([B[f"image.{facts['image']}"]] * copies)
    return multi_scale_cams(
        model,
        images,
        [tuple(B[f"{case}.keys"].tolist())] * copies,
        LabelConfig(
            scales=facts["scales"],
            attention_type=TYPES[facts["attention_type"]],
            refine=facts["patch_attn_refine"],
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_cams_are_the_published_ones(case):
    (cams,) = published_cams(case)
    expected = torch.from_numpy(B[f"{case}.cam"])
    step = cams.shape[-1] // expected.shape[-1]  # some are stored at every second pixel
    assert_golden(torch.from_numpy(cams)[..., ::step, ::step], expected)


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
    assert_golden(torch.from_numpy(one), torch.from_numpy(B[f"{case}.cam"]))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_each_image_of_a_batch_has_its_own_classes():
    model = model_of("A_a2_voc20_max").eval()
    images = np.stack([B["image.flower"], B["image.flower"][:, ::-1]])
    settings = LabelConfig(scales=(1.0,))
    together = multi_scale_cams(model, images, [(0, 5), ()], settings)
    (alone,) = multi_scale_cams(model, images[:1], [(0, 5)], settings)
    assert together[1].shape == (0, 75, 100)
    np.testing.assert_allclose(together[0], alone, atol=1e-5)


@pytest.mark.parametrize(("settings", "sizes"), [
    ({"batch_size": 16}, [4]),
    ({"batch_size": 3}, [3, 1]),
    ({"batch_tokens": 1}, [1, 1, 1, 1]),
    ({"batch_tokens": 2 * 2 * 7 * 5}, [2, 1, 1]),
])  # fmt: skip
def test_images_of_any_sizes_are_labelled_together(settings, sizes, tiny_model, monkeypatch):
    """Batches as large as the settings say, and the same CAMs as one image at a time."""
    sides = [(80, 112), (80, 112), (200, 112), (80, 48)]
    rng = np.random.default_rng(0)
    images = [
        (
            Sample(str(index), None, (index % 2,), None, ""),
            rng.integers(0, 255, (*side, 3), np.uint8),
        )
        for index, side in enumerate(sides)
    ]
    seen = []

    def noting(model, batch, *arguments):
        seen.append(len(batch))
        return multi_scale_cams(model, batch, *arguments)

    monkeypatch.setattr(stage, "multi_scale_cams", noting)
    monkeypatch.setattr(stage, "_normalise", lambda maps: maps)  # it enlarges rounding
    label = LabelConfig(scales=(1.0, 0.5), **settings)
    triples = list(image_cams(tiny_model, images, label))
    assert seen == sizes
    for (sample, image), (same, _, cams) in zip(images, triples, strict=True):
        (alone,) = multi_scale_cams(tiny_model, [image], [sample.labels], label)
        assert same is sample
        assert_golden(torch.from_numpy(cams), torch.from_numpy(alone))


@pytest.fixture
def tiny_model():
    return small.tiny_cam_model()
