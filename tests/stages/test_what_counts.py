"""A stage is made again where a setting changes that it reads, and its results are told as made."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest

from tests.stages import tiny
from weaktr import config
from weaktr.config import LabelConfig, Recipe
from weaktr.ranges import Settings
from weaktr.stages import pipeline
from weaktr.stages.inputs import inputs_of
from weaktr.stages.label import AFTER_CAMS
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import OF_CAMS, Run

#: The settings of a recipe -> their name in it.
GROUPS = {
    config.CamModelConfig: "cam_model",
    config.TrainCamConfig: "train_cam",
    config.LabelConfig: "label",
    config.SegModelConfig: "seg_model",
    config.TrainSegConfig: "train_seg",
    config.SizedTrainSegConfig: "train_seg",
    config.PredictConfig: "predict",
    config.EvaluateConfig: "evaluate",
}
#: What has no effect on results, what only names them, and the data, whose content counts.
FREE = {
    "name", "stages", "data", "device", "num_workers", "cache", "log_steps", "checkpoint_steps",
    "checkpoint_seconds", "train_seg.masks",
}  # fmt: skip
#: Of whole groups; what of them counts is looked at with their fields.
PARTS = set(GROUPS.values())


def free() -> set[str]:
    """`FREE`, and the fields without effect of all groups."""
    found = set(FREE)
    for kind, group in GROUPS.items():
        found |= {f"{group}.{f.name}" for f in fields(kind) if "without_effect" in f.metadata}
    return found


@contextmanager
def recorded(monkeypatch, recipe: Recipe) -> Iterator[set[str]]:
    """The whole names of the settings that the package reads meanwhile, of a recipe or a copy.

    Trained models have settings of their own.
    """
    read: set[str] = set()
    models = {id(recipe.cam_model), id(recipe.seg_model)}

    def get(settings, name):
        kind = type(settings)
        is_setting = kind is Recipe or kind in GROUPS
        if kind in (config.CamModelConfig, config.SegModelConfig):
            is_setting = id(settings) in models
        if is_setting and name in kind.__dataclass_fields__:
            by = sys._getframe(1).f_globals["__name__"]
            if by.startswith("weaktr.") and by not in ("weaktr.recipes", "weaktr.config"):
                read.add(f"{GROUPS[kind]}.{name}" if kind in GROUPS else name)
        return object.__getattribute__(settings, name)

    with monkeypatch.context() as patch:
        patch.setattr(Settings, "__getattribute__", get, raising=False)
        yield read


@pytest.fixture(autouse=True)
def no_forecast(monkeypatch):
    """How long a run will take is not measured."""
    monkeypatch.setattr("weaktr.stages.plan.forecast", lambda *_: {})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


#: Few steps.
SHORT = {"train_cam": {"epochs": 1}, "evaluate": {"cam_images": 2}}
#: Other CAMs.
OTHER = {"scales": [0.5, 2.0], "attention_type": "coarse", "refine": False}
FISHER = {"choose": "fisher", "validate_every": 1}
SEARCHED = {"threshold": "search_on_masks", "val_masks": 3}
PATCHES = {"kind": "patches", "patches": {"layers": [-2, -1], "short_side": 32}}
ALL = Recipe.stages


@pytest.mark.parametrize(
    "stages, changes",
    [
        (
            ALL,
            {
                "train_seg": {"batch_size": "auto", "epochs": 1},
                "label": {"unlabelled": "background"},
            },
        ),
        (ALL[:2], {"train_cam": FISHER, "label": SEARCHED}),
        (("train_cam", "evaluate"), {}),
        (ALL[:2], {"cam_model": PATCHES, "label": {"threshold": "auto"}}),
    ],
)
def test_what_a_stage_reads_counts_among_its_inputs(root, tmp_path, monkeypatch, stages, changes):
    recipe = short(root, stages, **changes)
    run = Run(recipe, tmp_path / "run")
    for stage in [stage for stage in pipeline.STAGES if stage.name in stages]:
        run_recipe(recipe, run.folder, only=stage.name)
        with recorded(monkeypatch, recipe) as read:
            stage.work(run, tmp_path / stage.name)
        assert read & PARTS, "nothing was recorded"
        known = inputs_of(stage, run).facts["settings"]
        strange = {name for name in read - PARTS - free() if not counts(name, known)}
        assert strange <= told_beside(stage.name, run), stage.name


def counts(name: str, known: dict) -> bool:
    group = name.partition(".")[0]
    return name in known or group in known


def told_beside(stage: str, run: Run) -> set[str]:
    """What a stage reads for its log, and of results that it reads by their own settings."""
    if stage == "train_cam":  # the mIoU of `validate_every`
        return {"evaluate.cam_images", "evaluate.thresholds"}
    if stage == "train_seg":  # of pseudo labels, which say what they are
        return {"label.unlabelled"} if run.recipe.label.unlabelled == "skip" else set()
    if stage == "evaluate":
        of_results = {
            f"{group}.{f.name}"
            for group, kind in (("label", LabelConfig), ("predict", config.PredictConfig))
            for f in fields(kind)
        }
        return of_results | {"seed"}
    return set()


def short(root, stages, **changes):
    return replace(tiny.recipe(root, **(SHORT | changes)), stages=stages)


def made_again(recipe, folder, **options) -> list[str]:
    """The stages that a further start makes again."""
    files = {stage: folder / stage / "finished.json" for stage in recipe.stages}
    before = {stage: file.stat().st_mtime_ns for stage, file in files.items() if file.exists()}
    run_recipe(recipe, folder, **options)
    return [stage for stage, file in files.items() if file.stat().st_mtime_ns != before.get(stage)]


def conditions(folder) -> dict[str, str]:
    return json.loads((folder / "metrics.json").read_text())["conditions"]


def test_every_setting_of_labels_is_of_cams_or_comes_after_them():
    others = {"unlabelled", "predict_above", "val_masks", "batch_size", "batch_tokens"}
    assert {*OF_CAMS, *AFTER_CAMS} | others == {f.name for f in fields(LabelConfig)}


def test_scores_of_cams_without_labels_are_made_again_where_the_cams_change(root, tmp_path):
    stages = ("train_cam", "evaluate")
    run_recipe(short(root, stages), tmp_path)
    assert "scales 1;" in conditions(tmp_path)["cam_miou"]
    other = short(root, stages, label=OTHER)
    assert made_again(other, tmp_path) == ["evaluate"]
    assert "scales 0.5, 2;" in conditions(tmp_path)["cam_coarse_miou"]
    assert made_again(other, tmp_path) == []
    no_matter = short(root, stages, label=OTHER | {"threshold": 0.6})
    assert made_again(no_matter, tmp_path) == []


def test_scores_from_labels_of_other_settings_say_which(root, tmp_path):
    stages = ("train_cam", "label", "evaluate")
    run_recipe(short(root, stages), tmp_path)
    facts = inputs_of(pipeline.EVALUATE, Run(short(root, stages), tmp_path)).facts
    assert list(facts["settings"]) == ["evaluate"]  # as older versions had it
    other = short(root, stages, label=OTHER)
    assert made_again(other, tmp_path, start="evaluate") == ["evaluate"]
    told = conditions(tmp_path)
    assert "scales 0.5, 2;" in told["cam_coarse_miou"]
    assert "scales 1;" in told["pseudo_label_miou"]


def test_labels_that_an_earlier_recipe_has_left_count_for_the_scores(root, tmp_path):
    run_recipe(short(root, ("train_cam", "label")), tmp_path)
    scored = short(root, ("train_cam", "evaluate"))
    run_recipe(scored, tmp_path)
    mask = next((tmp_path / "label" / "masks").iterdir())
    mask.write_bytes(next((root / "masks").iterdir()).read_bytes())
    assert made_again(scored, tmp_path) == ["evaluate"]


def test_another_seed_draws_other_masks_to_search_on(root, tmp_path):
    def drawn(seed):
        return replace(short(root, ("train_cam", "label"), label=SEARCHED), seed=seed)

    run_recipe(drawn(0), tmp_path)
    before = (tmp_path / "label" / "threshold.json").read_bytes()
    assert made_again(drawn(7), tmp_path, start="label") == ["label"]
    assert (tmp_path / "label" / "threshold.json").read_bytes() != before


def test_an_epoch_is_chosen_anew_where_the_cams_change(root, tmp_path):
    chosen = short(root, ("train_cam",), train_cam=FISHER)
    run_recipe(chosen, tmp_path)
    assert made_again(replace(chosen, label=replace(chosen.label, threshold=0.6)), tmp_path) == []
    other = replace(chosen, label=replace(chosen.label, **OTHER))
    assert made_again(other, tmp_path) == ["train_cam"]


def test_the_last_epoch_does_not_depend_on_labels(root, tmp_path):
    facts = [
        inputs_of(pipeline.TRAIN_CAM, Run(short(root, ALL, label=label), tmp_path))
        for label in ({}, OTHER)
    ]
    assert facts[0] == facts[1]
