"""Recipes: defaults, YAML, settings, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from weaktr.config import (
    Amp,
    LabelConfig,
    PredictConfig,
    Recipe,
    SegModelConfig,
    TrainCamConfig,
    TrainSegConfig,
    later,
    renamed,
)
from weaktr.outputs import fingerprint
from weaktr.ranges import in_words
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
    with_settings,
)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("voc12_deit", "; did you mean voc12_deit_s?"),
        ("foto/recipe", "got 'foto/recipe', where there is none"),
        ("recipe.yaml", "got 'recipe.yaml', where there is none"),
        ("photos", "got the folder photos; take photos/recipe.yaml"),
    ],
)
def test_recipes_that_are_not_there(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/recipe.yaml").touch()
    with pytest.raises(ValueError, match=re.escape(told) + "$") as error:
        find_recipe(name)
    assert str(error.value).count("voc12_deit_s,") <= 1


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
        ["train_cam.lr=1e-6", "label.crf={gaussian: [3, 3], bilateral: null}", 'data.root="a: b"'],
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
            r"train_cam.lr: expected a number above 0 and at most 100, got 10+$",
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
        (
            "label.threshold=|\n  two\n  lines",
            r"label.threshold: expected a number or one of auto, search_on_masks, got .two\\nlines",
        ),
        ("seed=1" + "0" * 5000, r"^--set seed=10{494}: .*expected YAML, got: a number of 5001"),
        ("seed='" + "x" * 5000 + "'", r"seed: expected a whole number, got 'x{499}\.\.\.$"),
        ("x" * 5000 + "=1", r"unknown key 'x{499}\.\.\."),
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
        (b"name: \xff", "expected text in UTF-8"),
        (b"seed: 1\nseed: 2\n", "line 2: expected YAML, got: the key 'seed' a second time"),
        (b"label:\n  flip: true\n  flip: true\n", "line 3: .*the key 'flip' a second time"),
        (b"seed: 1\n  flip: 2\n", "line 2: expected YAML, got: mapping values"),
        (b"label: &a {crf: {x: *a}}", "expected YAML, got: Circular reference"),
        (b"seed: 0x10", "seed: expected a whole number, got '0x10'"),
        (b"seed: 010", "seed: expected a whole number, got '010'"),
        (b"num_workers: 22:30", "num_workers: expected a whole number or one of auto, got '22:30'"),
        (b"checkpoint_seconds: 1:30.5", "checkpoint_seconds: expected a number, got '1:30.5'"),
        (b"train_cam: {lr: '1e-4'}", "train_cam.lr: expected a number, got '1e-4'"),
        (b"label: {flip: 'false'}", "label.flip: expected true or false, got 'false'"),
        (b"name: 1", "name: expected text, got 1"),
        (b"name: no", "name: expected text, got False"),
        (b"name: ../../evil", r"name: expected one word of .*, got '\.\./\.\./evil'"),
        (b"cam_model:\n  weights:\n", "line 2: expected YAML, got: no value for 'weights'"),
        (b"[" * 5000, "expected YAML, got: maximum recursion depth"),
        (b"base: 5", "base: expected a recipe or a list of recipes, got 5"),
        (b"label:\n", "line 1: expected YAML, got: no value for 'label' .null stands for none.$"),
        (b"label: null\n", "label: expected a mapping of attention_type"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}") as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


def test_the_name_of_a_file_has_to_be_a_plain_word(tmp_path):
    file = tmp_path / "my recipe.yaml"
    file.write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"name: expected one word .*file's\), got 'my recipe'$"):
        load_recipe(file)
    file.write_text("name: été-1.b_2\n")
    assert load_recipe(file).name == "été-1.b_2"


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
        ("010", "010"), ("0x1F", "0x1F"), ("22:30", "22:30"), ("1:30.5", "1:30.5"), ("-7", -7),
        ("0", 0), ("1_000", 1000),
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


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"expected a YAML file or one of .*voc12_deit_s"):
        load_recipe("voc12_deit")


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("predict.ratios=[]", "predict.ratios: expected a list of at least one, each item"),
        ("predict.ratios=[0]", r"predict.ratios: .* each item a number from 0.01 to 64, got .0.$"),
        ("predict.short_side=0", "predict.short_side: expected a whole number from 1 to 65536, go"),
        ("predict.window_batch=0", "predict.window_batch: expected a whole number from 1 to"),
        ("predict.window=-3", "predict.window: expected a whole number from 1 to 65536, got -3"),
        ("predict.window=1000000000", "predict.window: expected a whole number from 1 to 65536"),
        ("predict.stride=0", "predict.stride: expected a whole number from 1 to 65536, got 0"),
        ("predict.stride=481", "predict.stride: expected at most window, 480 pixels, got 481$"),
        ("predict.max_side=-5", "predict.max_side: expected a whole number from 1 to 65536 or nul"),
        ("label.scales=[1, 1e30]", "label.scales: .* each item a number from 0.01 to 64, got"),
        ("label.scales=[-1]", "label.scales: "),
        ("label.gt_prob=1", "label.gt_prob: expected a number above 0 and below 1, got 1$"),
        ("label.threshold=2", "label.threshold: expected a number from 0 to 1 or one of auto, sea"),
        ("label.predict_above=-0.1", "label.predict_above: expected a number from 0 to 1, got -0."),
        ("label.batch_tokens=0", "label.batch_tokens: expected a whole number from 1 to"),
        ("label.queue_mb=-1", "label.queue_mb: expected a whole number from 1 to"),
        ("train_cam.epochs=-1", "train_cam.epochs: expected a whole number from 0 to"),
        ("train_cam.epochs=1000000000000", "train_cam.epochs: expected a whole number from 0 to"),
        ("train_cam.lr=-1e-3", "train_cam.lr: expected a number above 0 and at most 100"),
        ("train_cam.ema_decay=1", "ema_decay: expected a number of at least 0 and below 1 or null"),
        ("train_cam.augment.scale=[1, 0.1]", r"scale: .* the larger one last, got \[1, 0.1\]$"),
        ("train_cam.augment.flip=7", "train_cam.augment.flip: expected a number from 0 to 1, got "),
        ("train_cam.augment.erasing=3", "train_cam.augment.erasing: expected a number from 0 to 1"),
        ("train_seg.momentum=2", "train_seg.momentum: expected a number of at least 0 and below 1"),
        ("train_seg.clip_patch=0", "train_seg.clip_patch: expected a whole number from 1 to"),
        ("train_seg.augment.ratio=[2, 0.5]", "train_seg.augment.ratio: expected two numbers from"),
        ("train_seg.augment.ratio=[1, 1e9]", "ratio: expected two numbers from 0.01 to 100"),
        ("train_seg.augment.short_side=1", "short_side: expected at least 2 pixels at the least"),
        ("train_seg.augment.short_side=3", "expected at least 2 pixels .*, got 1.5 .3 . 0.5.$"),
        ("train_seg.augment.max_ratio=1e300", "max_ratio: expected a number from 1 to 1000, got"),
        ("train_seg.layer_decay=1e30", "layer_decay: expected a number above 0 and at most 1, g"),
        ("train_seg.layer_decay=0", "layer_decay: expected a number above 0 and at most 1, got 0"),
        ("train_seg.encoder_lr=1e300", "encoder_lr: expected a number from 0 to 100, got 1e.300$"),
        ("train_seg.power=-1", "train_seg.power: expected a number from 0 to 100, got -1$"),
        ("train_seg.min_lr=1e9", "train_seg.min_lr: expected a number from 0 to 100, got"),
        ("train_cam.weight_decay=1e9", "weight_decay: expected a number from 0 to 100, got"),
        ("train_cam.warmup_epochs=1e300", "warmup_epochs: expected a number from 0 to 1"),
        ("predict.ratios=[1, 1e-9]", "predict.ratios: .* each item a number from 0.01 to 64"),
        ("cam_model.backbone_args={rope_temperature: 0}", "rope_temperature: expected greater"),
        ("cam_model.drop_path=1.5", "cam_model.drop_path: expected a number of at least 0 and bel"),
        ("cam_model.reduction=0", "reduction: expected a number from 0.001 to 1000000000.0, got"),
        ("cam_model.image_size=[224, 0]", r"a list of 2 \(a whole number from 1 .*, got \[224"),
        ("cam_model.weights=https://a.b/c", "cam_model.weights: expected a name or a file of this"),
        ("seg_model.backbone=hf-hub:a/b", "seg_model.backbone: expected a name or a file of this "),
        ("cam_model.backbone_args={pretrained_cfg: {url: a}}", "'pretrained_cfg' does not"),
        ("cam_model.backbone_args={x: [{y: 'http://a'}]}", "'x' does not describe the network"),
        ("cam_model.backbone_args={depth: 1000000000}", "depth: expected less than or equal"),
        ("cam_model.backbone_args={num_heads: -1}", "num_heads: expected greater than or"),
        ("data.options={root: x}", "data.options: expected options of the source; 'root' is none"),
        ("data.val_options={problems: []}", "data.val_options: expected options of the source; "),
        ("data.train_split=/elsewhere/mine", "data.train_split: expected the name of a split"),
        ("data.val_split=../val", "data.val_split: expected the name of a split below data.root"),
        ("cam_model.backbone_args={depth: 0}", "depth: expected greater than or equal to 1"),
        ("seg_model.decoder_layers=0", "decoder_layers: expected at least 1 for mask_transformer"),
        ("seg_model.dropout=1", "seg_model.dropout: expected a number of at least 0 and below 1"),
        ("evaluate.thresholds=[0, 1, 1e-9]", "evaluate.thresholds: expected first, last, step"),
        ("num_workers=-1", "num_workers: expected a whole number from 0 to 1024 or one of aut"),
        ("seed=-1", "seed: expected a whole number of at least 0 and below 9223372036854775808"),
        (f"seed={2**70}", "seed: expected a whole number of at least 0"),
        ("stages=[label, train_cam]", "stages: expected some of .*, each once and in this order, "),
        ("stages=[label, label]", "stages: expected some of .*, each once and in this order, got"),
        ("stages=[]", "stages: expected some of .*, each once and in this order, got"),
        ("stages=[labels]", "stages: expected a list, each item one of train_cam, label"),
        ("name=.hidden", "name: expected one word"),
        (f"name={'a' * 101}", "name: expected one word of at most 100"),
        ("data.root=''", "data.root: expected some text, got ''$"),
    ],
)  # fmt: skip
def test_values_outside_their_range_are_named(setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        with_settings(Recipe(), [setting])
    assert "\n" not in str(caught.value)


def number_settings(kind: type, above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and type, in words, of every setting that holds numbers."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from number_settings(hint, f"{above}{name}.")
        elif re.search(r"\b(int|float)\b", str(hint) if get_args(hint) else hint.__name__):
            yield above + name, in_words(hint)


@pytest.mark.parametrize(("name", "words"), list(number_settings(Recipe)))
def test_every_number_has_a_range(name, words):
    """One that is new, too: no number of a recipe is taken whatever it is."""
    far = [-(10**30)] + ([10**30] if "whole" in words else [])
    for number in far:
        value = [number] * (3 if name.endswith("thresholds") else 2) if "list" in words else number
        tree: dict[str, Any] = {}
        apply_setting(tree, f"{name}={value}")
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            make(Recipe, tree)


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ValueError) as caught:
        LabelConfig(threshold=2, flip="no", scales=1.0, crf=5)
    assert str(caught.value).splitlines() == [
        "scales: expected a list, each item a number, got 1.0",
        "flip: expected true or false, got 'no'",
        "threshold: expected a number from 0 to 1 or one of auto, search_on_masks, got 2",
        "crf: expected text or a mapping or null, got 5",
    ]
    with pytest.raises(ValueError, match="augment: expected CamAugment, got "):
        TrainCamConfig(augment={"flip": 1})
    with pytest.raises(ValueError, match="stride: expected at most window"):
        dataclasses.replace(PredictConfig(), window=100)
    with pytest.raises(ValueError, match="weights: expected text or null, got <object"):
        SegModelConfig(weights=object())
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="backbone_args: expected a mapping, got "):
        SegModelConfig(backbone_args=endless)


def test_settings_made_in_python_become_plain():
    settings = LabelConfig(scales=[1, np.float32(0.5)], batch_size=np.int64(3), flip=np.True_)
    assert settings == LabelConfig(scales=(1.0, 0.5), batch_size=3)
    assert SegModelConfig(weights=Path("a.pth")).weights == "a.pth"
    copied = pickle.loads(pickle.dumps(settings))
    assert copied == settings
    with pytest.raises(ValueError, match="threshold: expected a finite number, got nan"):
        LabelConfig(threshold=np.float32("nan"))


#: `identity` of the shipped recipes in older versions: runs of theirs that are finished stay so.
IDENTITIES = {
    "coco128_dinov2_s": "95cd2ada254ebe2f7697d07a4b5b0d9e",
    "coco14_cam_deit_s": "b63fa9a8137a0b6397e2b26b3558ef72",
    "coco14_deit_s": "036b25121be05efc40956b30e0f72897",
    "coco14_dinov2_s": "9dcd49767ad385323d4854fcea63ac77",
    "coco14_eva02_s": "ceb72396efc68254a5500516db29d048",
    "coco14_vit_s": "eefd36756d63e1cbb892fea44fe86a50",
    "demo": "5fea2eb76ac6d2cf49f05697db5d3be5",
    "own_dinov2_s": "738cc79e2814c228e384d72ffd623c2c",
    "voc12_both_dinov2_s": "efd39999ee6725b7f0a57076c5c8e76a",
    "voc12_both_dinov3_s": "249643166fb08916f35107a0c1b95dda",
    "voc12_both_eva02_s": "f06ffa128b9657ad3e238a109def9ac4",
    "voc12_cam_deit_s": "6c8eab8b1f2beec04e9ab98a4447a002",
    "voc12_deit_s": "1fe959c496038f930e763b4f1bb26cff",
    "voc12_dinov2_s": "e1002b897ac378df8a4286e23381b756",
    "voc12_eva02_s": "2f15d5890b2c4e5e0f0849afa8e5cb7a",
    "voc12_vit_s": "d264d50d428bd4d9270c5534a091a6c0",
    "voc12s_dinov2_s": "a718e178a7e383259d33834f6044b7ad",
}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_keep_their_identity(name):
    assert fingerprint(identity(load_recipe(name), is_former=True)) == IDENTITIES[name]


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


def test_renamed_values_have_their_former_names_where_older_versions_are_asked():
    @dataclass(frozen=True)
    class Settings:
        own: str = renamed("new", new="old")

    @dataclass(frozen=True)
    class Above:
        group: Settings = Settings()

    def names(value):
        above = Above(Settings(value))
        return [identity(above, is_former=one)["group"]["own"] for one in (False, True)]

    assert names("new") == ["new", "old"]
    assert names("old") == ["now old", "old"]
    assert names("other") == ["other", "other"]


@pytest.mark.parametrize("settings", [TrainCamConfig, TrainSegConfig])
def test_each_precision_trains_a_model_of_its_own(settings):
    """`amp` was "auto" in stage 1, which meant fp16 on CUDA, and "none" in stage 2."""
    names = get_args(Amp)
    assert len({identity(settings(amp=amp))["amp"] for amp in names}) == len(names)
    former = {amp: identity(settings(amp=amp), is_former=True)["amp"] for amp in names}
    renamed = {"fp16_on_cuda": "auto"} if settings is TrainCamConfig else {"auto": "none"}
    assert former == {amp: amp for amp in names} | renamed


@pytest.mark.parametrize("name", [name for name in recipe_names() if "deit" in name])
def test_published_rows_train_in_the_published_precision(name):
    recipe = load_recipe(name)
    assert (recipe.train_cam.amp, recipe.label.amp) == ("fp16_on_cuda", "auto")
    if "train_seg" in recipe.stages:
        assert recipe.train_seg.amp == "none"
