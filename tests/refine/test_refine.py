"""Refinement: a batch in, a batch out, in the order of the recipe."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from weaktr import refine as package
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data.masks import write_mask
from weaktr.ops.dense_crf import device_of_crf
from weaktr.ops.dense_crf.presets import PRESETS, DenseCRF
from weaktr.refine import REFINERS, Maps, choose_refiners, refine
from weaktr.refine.crf import CrfRefiner

CRF = DenseCRF(gaussian=(3, 3), bilateral=(20, 10, 5), iterations=3)
SIZES = ((20, 30, 3), (31, 17, 2), (8, 8, 1), (12, 25, 4))
#: Patches of each image.
GRIDS = ((3, 4), (5, 2), (1, 1), (2, 4))


def batch():
    """Images of different sizes, their maps of 3, 2, 1 and 4 labels."""
    generator = torch.Generator().manual_seed(0)
    images, maps = [], []
    for index, (height, width, labels) in enumerate(SIZES):
        shape = (height, width, 3)
        images.append(torch.randint(256, shape, generator=generator, dtype=torch.uint8))
        scores = torch.rand(labels, height, width, generator=generator).softmax(0)
        features = torch.rand(6, *GRIDS[index], generator=generator)
        of_image = {"features": features, "name": f"image {index}", "size": (height, width)}
        maps.append(Maps(scores.argmax(0).to(torch.uint8), labels, scores, **of_image))
    return images, maps


def settings_of(name, folder):
    """What a refiner needs in a recipe; None = its name alone."""
    if name == "teacher":
        for index, (height, width, labels) in enumerate(SIZES):
            mask = np.arange(height * width).reshape(height, width) % labels
            write_mask(folder / f"image {index}.png", mask.astype(np.uint8))
        return {"folder": str(folder)}
    if name != "proposals":
        return None
    for index, (height, width, _) in enumerate(SIZES):
        halves = {"size": [height, width], "counts": [0, height * (width // 2)]}
        halves["counts"].append(height * width - halves["counts"][1])
        (folder / f"image {index}.json").write_text(json.dumps([{"segmentation": halves}]))
    return {"file": str(folder)}


@pytest.mark.parametrize("stage", [LabelConfig(), PredictConfig()], ids=["label", "predict"])
@pytest.mark.parametrize("name", REFINERS)
def test_every_refiner_keeps_sizes_devices_and_what_it_was_given(name, stage, device, tmp_path):
    images, maps = batch()
    given = [image.to(device) for image in images]
    on_device = [one.to(torch.device(device)) for one in maps]
    refined = REFINERS[name](settings_of(name, tmp_path), stage)(given, on_device, num_threads=1)
    for new, one in zip(refined, maps, strict=True):
        assert new.labels.dtype == torch.uint8 and new.labels.device.type == device
        assert new.labels.shape == one.labels.shape
        assert new.num_labels == one.num_labels and new.labels.max() < one.num_labels
        assert new.scores is None or new.scores.shape == one.scores.shape
    assert all(map(torch.equal, images, (image.cpu() for image in given)))
    for one, before in zip(on_device, maps, strict=True):
        assert torch.equal(one.labels.cpu(), before.labels)
        assert torch.equal(one.scores.cpu(), before.scores)


def test_crf_from_labels_is_that_of_each_image():
    images, maps = batch()
    for image, one, new in zip(images, maps, CrfRefiner(CRF, 0.7)(images, maps), strict=True):
        alone = one.labels
        if one.num_labels > 1:
            alone = CRF.refine_labels(image, one.labels, one.num_labels, gt_prob=0.7)
        assert torch.equal(new.labels, alone)
        assert new.labels.dtype == torch.uint8 and new.num_labels == one.num_labels


def test_crf_from_scores_gives_marginals():
    images, maps = batch()
    for image, one, new in zip(images, maps, CrfRefiner(CRF)(images, maps), strict=True):
        marginals = one.scores
        if one.num_labels > 1:
            marginals = CRF.refine_probabilities(image, one.scores)
        assert torch.equal(new.scores, marginals)
        assert torch.equal(new.labels.long(), marginals.argmax(0))


def test_crf_from_scores_that_are_not_there():
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    maps = [Maps(torch.zeros(4, 4, dtype=torch.uint8), 2)]
    with pytest.raises(ValueError, match="maps: expected scores"):
        CrfRefiner(CRF)([image], maps)


def test_recipes_choose_the_crf():
    assert choose_refiners(LabelConfig()) == [CrfRefiner(PRESETS["voc_cam"], 0.7)]
    assert choose_refiners(PredictConfig()) == [CrfRefiner(PRESETS["voc_seg"], None)]
    assert choose_refiners(LabelConfig(crf=None)) == choose_refiners(LabelConfig(crf="none")) == []
    assert choose_refiners(PredictConfig(refiners=())) == []
    given = LabelConfig(refiners=({"crf": {"bilateral": [20, 10, 5]}}, "crf"), gt_prob=0.6)
    first, second = choose_refiners(given)
    assert first == CrfRefiner(DenseCRF(bilateral=(20, 10, 5)), 0.6)
    assert second == CrfRefiner(PRESETS["voc_cam"], 0.6)


def test_recipes_say_from_what_a_crf_starts():
    def chosen(stage, **crf):
        (refiner,) = choose_refiners(replace(stage, refiners=({"crf": crf},)))
        return refiner

    label, predict = LabelConfig(gt_prob=0.6), PredictConfig()
    assert chosen(label, start="scores") == CrfRefiner(PRESETS["voc_cam"], None)
    assert chosen(label, start="labels") == CrfRefiner(PRESETS["voc_cam"], 0.6)
    assert chosen(predict, start="labels") == CrfRefiner(PRESETS["voc_seg"], LabelConfig().gt_prob)
    own = chosen(label, start="scores", bilateral=[20, 10, 5])
    assert own == CrfRefiner(DenseCRF(bilateral=(20, 10, 5)), None)
    with pytest.raises(ValueError, match="crf: start: expected one of labels, scores, got 'cams'"):
        chosen(label, start="cams")


def test_a_crf_from_scores_comes_after_something_that_has_them():
    from_scores = {"crf": {"start": "scores"}}
    for between in ((), ("crf",)):
        with pytest.raises(ValueError, match="refiners: expected scores for crf, which starts"):
            choose_refiners(LabelConfig(refiners=("crf", *between, from_scores)))
    assert len(choose_refiners(LabelConfig(refiners=("crf", "propagation", from_scores)))) == 3
    assert len(choose_refiners(LabelConfig(refiners=(from_scores, from_scores, "crf")))) == 3
    assert len(choose_refiners(PredictConfig(refiners=("crf", "crf")))) == 2


@pytest.mark.parametrize(
    "entry", ["walk", {"class_path": "os.system"}, {"crf": None, "walk": None}, {}, {"crf": 3}]
)
def test_what_is_no_refiner_is_refused(entry):
    with pytest.raises(ValueError, match=r"refiners: expected each to be one of crf|crf: expected"):
        choose_refiners(LabelConfig(refiners=(entry,)))


def test_a_further_refiner_is_a_line_in_the_table(monkeypatch):
    """Settings reach it, the order is that of the recipe, maps pass from one to the next."""

    def shifted(settings, stage):
        def shift(images, maps, *, num_threads=None):
            assert isinstance(stage, LabelConfig)
            return [m._replace(labels=torch.roll(m.labels, settings["by"], 1)) for m in maps]

        return shift

    monkeypatch.setitem(package.REFINERS, "shift", shifted)
    images, maps = batch()
    stage = replace(
        LabelConfig(), refiners=({"shift": {"by": 2}}, "crf"), crf={"bilateral": [9, 9, 1]}
    )
    expected = CrfRefiner(DenseCRF(bilateral=(9, 9, 1)), 0.7)(
        images, [m._replace(labels=torch.roll(m.labels, 2, 1)) for m in maps]
    )
    refined = refine(choose_refiners(stage), images, maps)
    for one, other in zip(refined, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
    assert not np.array_equal(refined[0].labels, CrfRefiner(CRF, 0.7)(images, maps)[0].labels)


def test_without_cuda_code_the_crf_of_a_gpu_runs_on_the_host(caplog, monkeypatch):
    """The definition on the GPU would be slower than C++."""
    pytest.importorskip("weaktr._native", exc_type=ImportError)
    if torch.cuda.is_available():
        pytest.skip("the CUDA code may run here")
    monkeypatch.delenv("WEAKTR_BACKEND", raising=False)
    assert device_of_crf(torch.device("cuda")) == torch.device("cpu")
    assert device_of_crf(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert device_of_crf(torch.device("cuda")) == torch.device("cuda")


def test_confidence_is_that_of_the_refined_labels():
    images, maps = batch()
    for refiner in (CrfRefiner(CRF, 0.7), CrfRefiner(CRF)):
        for new, one in zip(refiner(images, maps, confidence=True), maps, strict=True):
            if one.num_labels == 1:
                assert new is one
                continue
            assert new.confidence.shape == one.labels.shape
            assert 1 / one.num_labels - 1e-6 <= new.confidence.min() <= new.confidence.max() <= 1
        plain = refiner(images, maps)
        with_confidence = refiner(images, maps, confidence=True)
        pairs = zip(plain, with_confidence, strict=True)
        assert all(torch.equal(a.labels, b.labels) for a, b in pairs)


def test_features_and_names_reach_every_refiner():
    """Also those after a refiner that knows of neither."""
    images, given = batch()
    refined = refine([CrfRefiner(CRF, 0.7), CrfRefiner(CRF, 0.6)], images, given)
    assert [one.name for one in refined] == [one.name for one in given]
    assert [one.size for one in refined] == [one.size for one in given]
    assert all(one.features is m.features for one, m in zip(refined, given, strict=True))
    moved = given[0].to(torch.device("meta"))
    assert moved.features.device.type == "meta" and moved.name == "image 0"
