"""Recipes: defaults, YAML, settings, and what is said about mistakes."""

from __future__ import annotations

import pytest

from weaktr.config import LabelConfig, Recipe
from weaktr.recipes import (
    RECIPES,
    as_tree,
    dump_recipe,
    find_recipe,
    load_recipe,
    make,
    recipe_names,
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_whole(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert find_recipe(name).parent == RECIPES


def test_the_default_is_the_published_recipe():
    recipe = load_recipe("voc12_deit_s")
    stage1, stage2 = recipe.train_cam, recipe.train_seg
    assert stage1.lr == pytest.approx(6e-4 * 64 / 512)
    assert (stage1.epochs, stage1.warmup_epochs, stage1.weight_decay) == (60, 5, 0.03)
    assert (stage2.epochs, stage2.batch_size, stage2.crop, stage2.lr) == (100, 4, 480, 1e-4)
    assert recipe.predict.ratios == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert not stage1.validate_every  # nothing looks at masks unless asked
    assert not stage2.validate_every


def test_a_dumped_recipe_reads_back_the_same(tmp_path):
    recipe = load_recipe(
        "voc12_deit_s",
        ["train_cam.lr=1e-6", "label.crf={gaussian: [3, 3], bilateral: null}", 'name="a: b"'],
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(file) == recipe


def test_settings_change_values_of_every_kind():
    recipe = load_recipe(
        "voc12_deit_s",
        [
            "train_cam.lr=1e-4",
            "label.scales=[1, 0.5]",
            "label.crf=null",
            "data.source=scenes",
            "data.options.count=12",
            "cam_model.weights=null",
            "train_cam.augment.flip=0",
            "seg_model.weights=stage1",
        ],
    )
    assert recipe.train_cam.lr == 1e-4
    assert recipe.label.scales == (1.0, 0.5)
    assert recipe.label.crf is None
    assert recipe.data.options == {"count": 12}
    assert recipe.cam_model.weights is None
    assert recipe.train_cam.augment.flip == 0
    assert recipe.train_cam.augment.erasing == 0.25


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train_cam.epoch=5", r"unknown key 'train_cam.epoch' - did you mean 'train_cam.epochs'"),
        ("trian_cam.epochs=5", r"unknown key 'trian_cam' - did you mean 'train_cam'"),
        ("train.compile=true", r"'train' - did you mean 'train_cam' or 'train_seg'\?"),
        ("train_cam.augment.flipp=1", r"did you mean 'train_cam.augment.flip'"),
        ("train_cam.epochs=many", r"train_cam.epochs"),
        ("label.attention_type=best", r"label.attention_type"),
        ("train_cam=5", r"train_cam: expected a mapping of epochs, batch_size"),
        ("train_cam.epochs.x=5", r"'epochs' is a value, it has no 'x'"),
        ("train_cam.clip_grad.x=5", r"(?s)train_cam.clip_grad.*{'x': 5}"),
        ("train_cam.epochs", r"expected key=value"),
        ("label.scales=[1,", r"expected YAML"),
    ],
)
def test_mistakes_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("voc12_deit_s", [setting])


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("label:\n  treshold: 0.3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key 'label.treshold' - did you mean "
                                         r"'label.threshold'"):  # fmt: skip
        load_recipe(file)
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: expected a YAML mapping, got list"):
        load_recipe(file)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"expected a YAML file or one of .*voc12_deit_s"):
        load_recipe("voc12_deit")


def test_parts_can_be_made_alone():
    assert make(LabelConfig, {"threshold": 0.2}) == LabelConfig(threshold=0.2)
    assert make(Recipe, as_tree(Recipe())) == Recipe()
