"""Thresholds that are chosen: before the masks, once, and said beside every score."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.test_train import said
from tests.stages import tiny
from weaktr import cli, load
from weaktr.config import LabelConfig, TrainCamConfig
from weaktr.data import read_mask
from weaktr.data.masks import MaskFolder
from weaktr.evaluation.bootstrap import interval, resampled_miou
from weaktr.evaluation.calibration import Calibration
from weaktr.evaluation.conditions import split_name
from weaktr.evaluation.folders import written_conditions
from weaktr.evaluation.iou import ConfusionSum, scores
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.labels import FACTORS, REFINED_FACTORS, label_maps, labels_from_cams
from weaktr.inference.threshold import THRESHOLDS, choose_by_features, read_choice
from weaktr.recipes import dump_recipe, identity
from weaktr.refine import choose_refiners
from weaktr.stages.label import LABEL, label
from weaktr.stages.pipeline import check_recipe, inputs_of, run_recipe
from weaktr.stages.run import Run
from weaktr.stages.threshold import masks_to_search_on


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=12)


def of_stage_1(root, **label_settings):
    return replace(
        tiny.recipe(root, label=label_settings), stages=("train_cam", "label", "evaluate")
    )


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A finished run of stage 1 with ``threshold: auto``."""
    folder = tmp_path_factory.mktemp("run")
    recipe = of_stage_1(root, threshold="auto")
    run_recipe(recipe, folder)
    return Run(recipe, folder)


def source_of(run, **changes):
    settings = replace(run.recipe.label, **changes)
    return CamsOfModel(run.cam_model(), settings, with_features=True)


def test_auto_is_chosen_drawn_and_said_beside_the_scores(run):
    choice = read_choice(run.of("label"))
    expected = choose_by_features(source_of(run), run.train_images.samples, 8)
    assert choice == expected
    assert (run.of("label") / "threshold.png").is_file()
    conditions = json.loads((run.folder / "metrics.json").read_text())["conditions"]
    assert f"threshold auto: {choice.threshold:g}" in conditions["pseudo_label_miou"]
    note = f"threshold {choice.in_words()}; classes given"
    assert written_conditions(run.of("label"), "train").note == note
    assert note in conditions["pseudo_label_miou"]
    source = source_of(run)
    masks = MaskFolder(run.of("label"), verify=True)
    for sample in run.train_images:
        (cams,) = source.cams([source.read(sample)])
        labels = np.array([0, *(index + 1 for index in cams.classes)], np.uint8)
        plain = labels[labels_from_cams(cams.maps, choice.threshold).numpy()]
        np.testing.assert_array_equal(masks.read(sample.name), plain)


def test_a_finished_run_with_a_chosen_threshold_is_not_run_again(run, caplog):
    before = (run.of("label") / "finished.json").stat().st_mtime_ns
    run_recipe(run.recipe, run.folder)
    assert (run.of("label") / "finished.json").stat().st_mtime_ns == before


def test_masks_that_were_stopped_go_on_with_the_same_threshold(run, tmp_path, monkeypatch):
    """Also if the choice itself would be another one now."""
    settings, samples = run.recipe.label, run.train_images.samples
    label(source_of(run), samples[:4], tmp_path, settings)
    first = read_choice(tmp_path)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "masks").iterdir()}
    monkeypatch.setattr("weaktr.stages.threshold.choose_by_features", None)
    label(source_of(run), samples, tmp_path, settings)
    assert read_choice(tmp_path) == first and len(first.images) == 4
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(MaskFolder(tmp_path)) == 12


def test_masks_of_another_choice_are_made_again(run, tmp_path):
    settings, samples = run.recipe.label, run.train_images.samples
    label(source_of(run), samples[:3], tmp_path, settings)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "masks").iterdir()}
    (tmp_path / "threshold.json").unlink()
    (tmp_path / "threshold.png").write_bytes(b"somebody's")
    label(source_of(run), samples, tmp_path, settings)
    assert len(read_choice(tmp_path).images) == 12
    assert all(p.stat().st_mtime_ns != stamp for p, stamp in kept.items())
    (own,) = tmp_path.glob("threshold.old-*.png")
    assert own.read_bytes() == b"somebody's"


def test_images_without_a_class_need_no_threshold(run, tmp_path):
    nothing = [replace(sample, labels=()) for sample in run.train_images.samples[:2]]
    settings = replace(run.recipe.label, unlabelled="background")
    report = label(source_of(run), nothing, tmp_path, settings)
    assert report.masks == 2 and not (tmp_path / "threshold.json").exists()


def test_the_search_on_masks_is_the_best_by_definition_and_says_what_it_used(run, tmp_path, caplog):
    recipe = of_stage_1(run.recipe.data.root, threshold="search_on_masks", val_masks=5)
    searched = Run(recipe, run.folder)
    chosen = masks_to_search_on(searched)
    assert len(chosen) == 5
    caplog.set_level("INFO", "weaktr")
    settings = recipe.label
    gone = replace(chosen.samples[0], name="gone", image=tmp_path / "gone.jpg")
    more = replace(chosen, samples=(gone, *chosen.samples))
    label(source_of(run), run.train_images.samples, tmp_path, settings, masked=more)
    source = source_of(run)
    mious, per_image = [], []
    for threshold in THRESHOLDS:
        total, overlaps = ConfusionSum(4), []
        for sample in chosen:
            (cams,) = source.cams([source.read(sample)])
            best = np.array([index + 1 for index in cams.classes])[cams.maps.argmax(0).numpy()]
            labels = np.where(cams.maps.amax(0).numpy() > np.float32(threshold), best, 0)
            one = ConfusionSum(4)
            one.add(labels.astype(np.uint8), read_mask(sample, 4))
            total.matrix += one.matrix
            square = one.matrix[:, :-1]
            overlaps.append([np.diag(square), square.sum(1), square.sum(0)])
        mious.append(scores(total).miou)
        per_image.append(overlaps)
    choice = read_choice(tmp_path)
    best = int(np.argmax(mious))
    assert choice.threshold == THRESHOLDS[best]
    np.testing.assert_allclose([value for _, value in choice.curve], mious, atol=1e-3)
    low, high = interval(resampled_miou(np.array(per_image[best])))
    text = caplog.text
    told = f"chosen with true masks of 5 images of {split_name(chosen)}: this run uses pixel labels"
    assert told in text and choice.images == tuple(sample.name for sample in chosen)
    assert f"{mious[best]:.1f} (95 % interval {low:.1f} to {high:.1f})" in text


def test_which_masks_are_drawn_depends_on_the_seed_alone(root):
    recipe = of_stage_1(root, threshold="search_on_masks", val_masks=4)
    names = [s.name for s in masks_to_search_on(Run(recipe, root))]
    assert names == [s.name for s in masks_to_search_on(Run(recipe, root))]
    draws = {
        tuple(s.name for s in masks_to_search_on(Run(replace(recipe, seed=seed), root)))
        for seed in range(5)
    }
    assert len(draws) > 1
    everything = of_stage_1(root, threshold="search_on_masks")
    assert len(masks_to_search_on(Run(everything, root))) == 12


def test_changed_masks_make_a_search_run_again(run, root):
    searched = Run(of_stage_1(root, threshold="search_on_masks"), run.folder)
    before = inputs_of(LABEL, searched)
    assert "chosen_on" in before.facts and "chosen_on" not in inputs_of(LABEL, run).facts
    changed = Run(searched.recipe, run.folder)
    score = changed.score
    fewer = (replace(score.samples[0], mask=None), *score.samples[1:])
    changed.__dict__["score"] = replace(score, samples=fewer)
    assert inputs_of(LABEL, changed).made_from != before.made_from


def test_the_check_finds_too_few_masks(root, tmp_path):
    recipe = of_stage_1(root, threshold="search_on_masks", val_masks=13)
    faults = [fault for part in check_recipe(recipe, tmp_path / "run") for fault in part.faults]
    assert len(faults) == 1
    assert faults[0].startswith("label.val_masks: expected at most the 12 images")


def test_runs_of_older_versions_are_as_they_were():
    """None of the new settings is in a fingerprint where it says what was done before."""
    assert not {"val_masks", "confidence"} & identity(LabelConfig()).keys()
    assert "choose" not in identity(TrainCamConfig())
    assert identity(LabelConfig(threshold="auto"))["threshold"] == "auto"


def test_a_number_of_masks_without_a_search_is_refused():
    with pytest.raises(ValueError, match="val_masks: expected null unless"):
        LabelConfig(threshold="auto", val_masks=3)


def test_commands(run, root, tmp_path):
    model, images = run.of("train_cam") / "model.safetensors", root / "images"
    given = [images, "--labels", root / "labels.csv"]
    code, text = said(
        cli.main, "label", model, *given, "--out", tmp_path / "out", "--set", "threshold=auto",
        "--set", "crf=none", "--emit", "cam",
    )  # fmt: skip
    assert code == 0, text
    assert read_choice(tmp_path / "out").way == "auto"
    cams = tmp_path / "out" / "cams"
    for source, way in ((cams, "auto"), (cams, "search_on_masks"), (model, "search_on_masks")):
        labels = given[1:] if source == model else []
        code, text = said(
            cli.main, "label", source, images, *labels, "--out", tmp_path / "no",
            "--set", f"threshold={way}",
        )  # fmt: skip
        assert code == cli.WRONG_INPUT and not (tmp_path / "no").exists()
        assert f"threshold: '{way}'" in text


def test_stability_is_written_and_its_calibration_printed(run, root, tmp_path):
    model, out = run.of("train_cam") / "model.safetensors", tmp_path / "out"
    code, text = said(
        cli.main, "label", model, root / "images", "--labels", root / "labels.csv", "--out", out,
        "--set", "scales=[1.0]", "--set", "crf=none", "--emit", "confidence",
        "--set", "confidence=stability", "--set", "threshold=0.4",
    )  # fmt: skip
    assert code == 0, text
    settings = replace(run.recipe.label, scales=(1.0,), crf=None, threshold=0.4)
    source, calibration = CamsOfModel(run.cam_model(), settings, with_views=True), Calibration()
    for sample in run.score:
        (result,) = label_maps(
            source, [source.read(sample)], settings.threshold, [],
            emit=["confidence"], confidence="stability",
        )  # fmt: skip
        grey = np.asarray(Image.open(out / "confidence" / f"{sample.name}.png"))
        expected = np.round(255 * result.arrays()["confidence"])
        np.testing.assert_array_equal(grey, expected)
        calibration.add(grey, result.mask(), read_mask(sample, 4))
    code, text = said(
        cli.main, "eval", out, root / "masks", "--num-labels", 4, "--out", tmp_path / "scores"
    )
    assert code == 0, text
    assert f"expected calibration error {100 * calibration.error():.1f} %" in text
    (tmp_path / "scores" / "metrics.json").unlink()
    (out / "confidence" / "0.png").unlink()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(out / "confidence" / "0.png")
    code, text = said(
        cli.main, "eval", out, root / "masks", "--num-labels", 4, "--out", tmp_path / "scores"
    )
    assert code == cli.WRONG_INPUT and "confidence/0.png" in "".join(text.split())


def test_a_chosen_threshold_stability_and_propagation_go_together(run, tmp_path):
    settings = replace(
        run.recipe.label, refiners=("propagation",), threshold="auto", confidence="stability"
    )
    source = CamsOfModel(run.cam_model(), settings, with_features=True, with_views=True)
    samples = run.train_images.samples[:4]
    label(source, samples, tmp_path, settings, emit=["confidence"])
    threshold = read_choice(tmp_path).threshold
    refiners = choose_refiners(settings)
    for sample in samples:
        one = source.read(sample)
        (result,) = label_maps(
            source, [one], threshold, refiners, emit=["confidence"], confidence="stability"
        )
        (cams,) = source.cams([one])
        ways = [labels_from_cams(cams.maps, threshold * factor) for factor in FACTORS]
        ways += [labels_from_cams(view, threshold) for view in cams.views]
        for factor in REFINED_FACTORS:
            (other,) = label_maps(source, [one], threshold * factor, refiners)
            ways.append(torch.from_numpy(other.arrays()["refined"]))
        final = result.arrays()["refined"]
        expected = np.mean([way.numpy() == final for way in ways], 0)
        np.testing.assert_allclose(result.arrays()["confidence"], expected, atol=1e-6)
        assert (tmp_path / "confidence" / f"{sample.name}.png").is_file()


def test_val_masks_is_short_for_settings(root, tmp_path):

    file = tmp_path / "tiny.yaml"
    file.write_text(dump_recipe(of_stage_1(root)))
    out = tmp_path / "run"
    code, _ = said(cli.train_main, file, "--out", out, "--val-masks", "3")
    assert code == 0
    choice = read_choice(out / "label")
    assert (choice.way, len(choice.images)) == ("search_on_masks", 3)
    metrics = json.loads((out / "metrics.json").read_text())
    details = json.loads((out / "evaluate" / "metrics.json").read_text())
    assert details[0]["supervision"].endswith("the threshold chosen with true masks")
    words = "chosen with true masks of 3 images of "
    assert words in metrics["conditions"]["pseudo_label_miou"]


def test_python_chooses_for_an_image_alone(run):
    model = load(run.of("train_cam") / "model.safetensors", "cpu")
    sample = run.train_images.samples[3]
    settings = replace(run.recipe.label, threshold=0.43)
    mask = model.label(str(sample.image), sample.labels, settings, threshold="auto")
    choice = choose_by_features(source_of(run), [sample], 8)
    expected = model.label(str(sample.image), sample.labels, settings, threshold=choice.threshold)
    np.testing.assert_array_equal(mask, expected)
    with pytest.raises(ValueError, match="is for recipes"):
        model.label(
            str(sample.image), sample.labels, replace(settings, threshold="search_on_masks")
        )
