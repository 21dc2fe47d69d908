"""Pseudo labels of a folder: what is written, what is left out, going on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from weaktr.config import LabelConfig, PropagationConfig
from weaktr.data import Sample
from weaktr.data.io import read_stored_labels
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.labels import scores_from_cams
from weaktr.refine import Maps
from weaktr.refine.propagation import PropagationRefiner
from weaktr.stages.label import label


@pytest.fixture
def tiny_model():
    return small.tiny_cam_model()


@pytest.fixture
def samples(tmp_path):
    good_samples = []
    for index, labels in enumerate([(0,), (0, 1), (), None]):
        path = tmp_path / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24 + index, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        good_samples.append(Sample(f"deep/{index}", path, labels, None, f"list.txt:{index + 1}"))
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "0.png").read_bytes()[:100])
    return [*good_samples, Sample("broken", broken, (1,), None, "list.txt:5")]


def test_unlabelled_and_corrupt_images_are_reported(tiny_model, samples, tmp_path):
    out = tmp_path / "out"
    report = label(
        CamsOfModel(tiny_model, LabelConfig(crf=None)), samples, out, LabelConfig(crf=None)
    )
    assert report.masks == 2
    assert report.unlabelled == ["deep/2", "deep/3"]
    assert [(p.file, p.where) for p in report.left_out] == [
        (str(tmp_path / "broken.png"), "list.txt:5")
    ]
    assert set(MaskFolder(out).entries) == {"deep/0", "deep/1"}


def test_unlabelled_images_can_become_background(tiny_model, samples, tmp_path):
    settings = LabelConfig(unlabelled="background", crf="voc_cam")
    label(CamsOfModel(tiny_model, settings), samples[:3], tmp_path / "out", settings)
    masks = MaskFolder(tmp_path / "out")
    assert not masks.read("deep/2").any()
    assert masks.entries["deep/2"].labels == (0,)


def test_only_classes_of_the_image_label_occur(tiny_model, samples, tmp_path):
    label(
        CamsOfModel(tiny_model, LabelConfig(threshold=0.2)),
        samples[:2],
        tmp_path / "out",
        LabelConfig(threshold=0.2),
    )
    masks = MaskFolder(tmp_path / "out")
    assert set(np.unique(masks.read("deep/0"))) <= {0, 1}
    assert set(np.unique(masks.read("deep/1"))) <= {0, 1, 2}


def test_finished_masks_are_not_made_again(tiny_model, samples, tmp_path):
    out, settings = tmp_path / "out", LabelConfig(crf=None)
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    kept = MaskFolder(out).path("deep/0")
    before = kept.stat().st_mtime_ns
    label(CamsOfModel(tiny_model, settings), samples[:2], out, settings)
    assert kept.stat().st_mtime_ns == before
    assert len(MaskFolder(out)) == 2


def test_a_damaged_mask_is_made_again(tiny_model, samples, tmp_path):
    out, settings = tmp_path / "out", LabelConfig(crf=None)
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    path = MaskFolder(out).path("deep/0")
    whole = read_stored_labels(path)
    path.write_bytes(path.read_bytes()[:40])
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    np.testing.assert_array_equal(read_stored_labels(path), whole)


def test_cams_can_be_dumped(tiny_model, samples, tmp_path):
    label(
        CamsOfModel(tiny_model, LabelConfig(crf=None)),
        samples[:2],
        tmp_path / "out",
        LabelConfig(crf=None),
        emit=["cam"],
    )
    with np.load(tmp_path / "out" / "cams" / "deep" / "1.npz") as stored:
        assert stored["cams"].shape == (2, 20, 25)
        assert stored["classes"].tolist() == [0, 1]
        assert stored["cams"].min() >= 0
        assert stored["cams"].max() <= 1


def test_cams_of_finished_masks_can_be_dumped(tiny_model, samples, tmp_path):
    out, settings = tmp_path / "out", LabelConfig(crf=None)
    label(CamsOfModel(tiny_model, settings), samples[:2], out, settings)
    masks = MaskFolder(out).entries
    (out / "cams" / "deep").mkdir(parents=True)
    (out / "cams" / "deep" / "0.npz").write_text("dumped before")
    label(CamsOfModel(tiny_model, settings), samples[:2], out, settings, emit=["cam"])
    assert (out / "cams" / "deep" / "0.npz").read_text() == "dumped before"
    with np.load(out / "cams" / "deep" / "1.npz") as stored:
        assert stored["classes"].tolist() == [0, 1]
    assert MaskFolder(out).entries == masks


def test_propagation_works_on_the_features_of_the_model(tiny_model, samples, tmp_path):
    settings = LabelConfig(threshold=0.5, refiners=({"propagation": {"alpha": 0.6}},))
    source = CamsOfModel(tiny_model, settings, with_features=True)
    for sample in samples[:2]:  # of 30 patches
        Image.open(sample.image).resize((96, 80), Image.Resampling.NEAREST).save(sample.image)
    label(source, samples[:2], tmp_path / "out", settings)
    masks, before = MaskFolder(tmp_path / "out"), MaskFolder(before_refinement(tmp_path / "out"))
    for sample in samples[:2]:
        (cams,) = source.cams([source.read(sample)])
        scores = scores_from_cams(cams.maps, 0.5)
        maps = Maps(scores.argmax(0).to(torch.uint8), len(scores), scores, features=cams.features)
        spread = PropagationRefiner(PropagationConfig(alpha=0.6), 0.7)([None], [maps])[0]
        values = np.array([0, *(index + 1 for index in cams.classes)])
        np.testing.assert_array_equal(before.read(sample.name), values[maps.labels])
        np.testing.assert_array_equal(masks.read(sample.name), values[spread.labels])
        assert (spread.labels != maps.labels).any()
    with pytest.raises(ValueError, match=r"refiners: expected CAMs with patch features"):
        label(CamsOfModel(tiny_model, settings), samples[:1], tmp_path / "other", settings)
    assert not (tmp_path / "other").exists()
