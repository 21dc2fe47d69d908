"""The share of other ways of labelling that agree: one by one, as the definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from weaktr.config import LabelConfig
from weaktr.data import Sample
from weaktr.inference.cams import Cams, CamsOfModel
from weaktr.inference.labels import label_maps, labels_from_cams, stability
from weaktr.refine import Maps, choose_refiners, refine

CRF = {"gaussian": [3, 3], "bilateral": [20, 8, 4], "iterations": 3}


@pytest.fixture
def model():
    return small.tiny_cam_model()


@pytest.fixture
def inputs(model, tmp_path):
    settings = LabelConfig(scales=(1.0, 1.5), flip=True, threshold=0.4, crf=CRF)
    source = CamsOfModel(model, settings, with_views=True)
    batch = []
    for index, labels in enumerate([(0, 1), (1,), ()]):
        path = tmp_path / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 26, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        batch.append(source.read(Sample(str(index), path, labels, None, "")))
    return source, settings, batch


@pytest.mark.parametrize("with_refiners", [False, True])
def test_it_is_the_share_of_the_ways_that_agree(inputs, with_refiners):
    source, settings, batch = inputs
    refiners = choose_refiners(settings) if with_refiners else []
    results = label_maps(source, batch, 0.4, refiners, emit=["confidence"], confidence="stability")
    for result, one, cams in zip(results, batch, source.cams(batch), strict=True):
        maps = result.arrays()
        ways = [labels_from_cams(cams.maps, 0.4 * f) for f in (0.2, 0.4, 0.7, 1.4, 2.0, 3.0, 4.5)]
        ways += [labels_from_cams(view, 0.4) for view in cams.views]
        for factor in (0.5, 2.0) if with_refiners else ():
            given = Maps(labels_from_cams(cams.maps, 0.4 * factor), 1 + len(cams.classes))
            ways += [refine(refiners, [one.image], [given])[0].labels]
        agree = [(way.numpy() == maps["refined"]) for way in ways]
        np.testing.assert_allclose(maps["confidence"], np.mean(agree, 0), atol=1e-6)
        if not cams.classes:
            assert (maps["confidence"] == 1).all()
    assert 0 < results[0].arrays()["confidence"].min() < 1


def test_views_are_the_cams_of_one_scale_and_flip(model, inputs):
    source, _, batch = inputs
    (cams,) = source.cams(batch[:1])
    assert len(cams.views) == 4
    for number, scale in enumerate((1.0, 1.5)):
        alone = CamsOfModel(model, LabelConfig(scales=(scale,), flip=False))
        (expected,) = alone.cams([alone.inputs(batch[0].sample, batch[0].photograph.pixels)])
        torch.testing.assert_close(cams.views[2 * number], expected.maps, atol=1e-5, rtol=1e-4)
    assert not CamsOfModel(model, LabelConfig()).cams(batch[:1])[0].views


def test_a_pixel_far_from_the_threshold_is_stable():
    cams = Cams((0,), torch.tensor([[[0.0, 0.3, 0.42, 1.0]]]))
    labels = labels_from_cams(cams.maps, 0.4)
    (share,) = stability([cams], [0.4], [Maps(labels, 2)], [], [])
    np.testing.assert_allclose(share, [[1, 4 / 7, 3 / 7, 5 / 7]])
