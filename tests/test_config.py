"""Recipes: defaults, YAML, settings, and what is said about mistakes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from weaktr.config import LabelConfig, Recipe, later
from weaktr.recipes import (
    RECIPES,
    apply_setting,
    as_tree,
    dump_recipe,
    find_recipe,
    identity,
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
        ("train_cam.epochs=many", r"train_cam.epochs: expected a whole number, got 'many'$"),
        ("train_cam.epochs='5'", r"train_cam.epochs: expected a whole number, got '5'$"),
        ("train_cam.epochs=5.0", r"train_cam.epochs: expected a whole number, got 5.0$"),
        ("train_cam.epochs=true", r"train_cam.epochs: expected a whole number, got True$"),
        ("train_cam.epochs=null", r"train_cam.epochs: expected a whole number, got None$"),
        ("train_cam.lr=true", r"train_cam.lr: expected a number, got True$"),
        ("train_cam.lr=.nan", r"train_cam.lr: expected a finite number, got nan$"),
        (
            "train_cam.lr=1" + "0" * 400,
            r"train_cam.lr: expected a (finite )?number, got (inf|10+)$",
        ),
        ("train_cam.clip_grad=-.inf", r"train_cam.clip_grad: expected a finite number, got -inf$"),
        ("label.scales=[1, .inf]", r"label.scales.1: expected a finite number, got inf$"),
        ("label.crf={a: [.nan]}", r"label.crf.a.0: expected a finite number, got nan$"),
        ("train_cam.compile=1", r"train_cam.compile: expected true or false, got 1$"),
        ("data.root=2012", r"data.root: expected text, got 2012$"),
        (
            "label.attention_type=best",
            r"type: expected one of coarse, fused, transcam, got 'best'$",
        ),
        ("label.scales=1", r"label.scales: expected a list, each item a number, got 1$"),
        (
            "evaluate.thresholds=[0, 1]",
            r"a list of 3 \(a number, a number, a number\), got \[0, 1\]$",
        ),
        ("label.crf=5", r"label.crf: expected text or a mapping or null, got 5$"),
        ("data.options=null", r"data.options: expected a mapping, got None$"),
        ("data.options={1: 2}", r"a key of type int, which has to be text"),
        (
            "data.options={a: 1, a: 2}",
            r"--set .*line 1: expected YAML, got: the key 'a' a second time",
        ),
        ("model.weights", r"expected key=value"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a YAML mapping, got nothing"),
        (b"# nothing\n", "expected a YAML mapping, got nothing"),
        (b"5", "expected a YAML mapping, got int"),
        (b"name: \xff", "expected UTF-8"),
        (b"seed: 1\nseed: 2\n", "line 2: expected YAML, got: the key 'seed' a second time"),
        (b"label:\n  flip: true\n  flip: true\n", "line 3: .*the key 'flip' a second time"),
        (b"seed: 1\n  flip: 2\n", "line 2: expected YAML, got: mapping values"),
        (b"label: &a {crf: {x: *a}}", "expected YAML, got: Circular reference"),
        (b"seed: 0x_", "expected YAML"),
        (b"[" * 5000, "expected YAML, got: maximum recursion depth"),
        (b"base: 5", "base: expected a recipe or a list of recipes, got 5"),
        (b"label:\n", "label: expected a mapping of attention_type"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}") as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_wrong_values_are_told_together(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: x\ntrain_cam: {epochs: five, lr: .nan, augment: {flip: [1]}}\n")
    with pytest.raises(ValueError) as caught:
        load_recipe(file)
    assert sorted(str(caught.value).splitlines()) == [
        f"{file}: seed: expected a whole number, got 'x'",
        f"{file}: train_cam.augment.flip: expected a number, got [1]",
        f"{file}: train_cam.epochs: expected a whole number, got 'five'",
        f"{file}: train_cam.lr: expected a finite number, got nan",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("6e-4", 6e-4), ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("5", 5),
        ("yes", True), ("off", False), ("null", None), ("~", None), ("", None), ("none", "none"),
        ("None", "None"), ("2012-01-02", "2012-01-02"), ("cuda:1", "cuda:1"), ("e5", "e5"),
        ("'5'", "5"), ("[1, 2.5]", [1, 2.5]), ("{a: {b: 1e-1}}", {"a": {"b": 0.1}}),
    ],
)  # fmt: skip
def test_what_values_of_set_mean(text, value):
    tree: dict[str, object] = {}
    apply_setting(tree, f"a.b={text}")
    assert tree == {"a": {"b": value}} and type(tree["a"]["b"]) is type(value)


def test_the_crf_called_none_stays_a_name():
    assert load_recipe("demo", ["label.crf=none"]).label.crf == "none"
    assert load_recipe("demo", ["label.crf=null"]).label.crf is None


def test_what_an_alias_repeats_is_changed_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("cam_model: {backbone_args: &b {depth: 2}}\nseg_model: {backbone_args: *b}\n")
    recipe = load_recipe(file, ["cam_model.backbone_args.depth=3"])
    assert recipe.cam_model.backbone_args == {"depth": 3}
    assert recipe.seg_model.backbone_args == {"depth": 2}


def test_recipes_are_read_without_torch():
    code = "import sys, weaktr.recipes as r; r.load_recipe('demo'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"expected a YAML file or one of .*voc12_deit_s"):
        load_recipe("voc12_deit")


def test_parts_can_be_made_alone():
    assert make(LabelConfig, {"threshold": 0.2}) == LabelConfig(threshold=0.2)
    assert make(Recipe, as_tree(Recipe())) == Recipe()


def test_later_settings_at_their_default_leave_the_identity_as_it_was():
    @dataclass(frozen=True)
    class Group:
        old: int = 1
        new: int = later(2)

    @dataclass(frozen=True)
    class Settings:
        group: Group = Group()
        own: int = later(3)

    assert identity(Settings()) == {"group": {"old": 1}}
    changed = Settings(Group(new=4), own=5)
    assert identity(changed) == {"group": {"old": 1, "new": 4}, "own": 5}
