"""Recipes and ``inputs.json`` of strangers: whatever they hold, nothing is imported."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from weaktr.config import LabelConfig, PredictConfig, Recipe
from weaktr.evaluation.folders import written_conditions
from weaktr.models.released.variant import read_variant
from weaktr.recipes import apply_setting, load_recipe

PROBE = "a_module_that_no_recipe_may_import"
TARGET = f"{PROBE}.Payload"
PAYLOADS: list[Any] = [
    {"class_path": TARGET},
    {"class_path": TARGET, "init_args": {"x": 1}, "dict_kwargs": {"y": 2}},
    [{"class_path": TARGET}],
    {"a": [{"b": {"class_path": TARGET}}]},
    TARGET,
]
TAGS = [
    f"!!python/name:{TARGET}",
    f"!!python/module:{PROBE}",
    f"!!python/object:{TARGET} {{x: 1}}",
    f"!!python/object/apply:{TARGET} [1]",
    f"!!python/object/new:{TARGET} [1]",
]


@pytest.fixture(autouse=True)
def _nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where `PROBE`, which is there to be imported, was."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{PROBE}.py").write_text("class Payload:\n    def __init__(self, *_, **__): ...\n")
    monkeypatch.syspath_prepend(folder)
    yield
    imported = sys.modules.pop(PROBE, None)
    importlib.import_module(PROBE)  # it could have been
    del sys.modules[PROBE]
    assert imported is None


def settings_of(kind: type, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting, groups of settings included."""
    for name, hint in get_type_hints(kind).items():
        yield above + name, hint
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from settings_of(hint, f"{above}{name}.")


def fits(payload: Any, hint: Any) -> bool:
    """Whether a setting of this type may hold it: as plain text, or in a mapping of free form."""
    if get_origin(hint) is tuple:
        return isinstance(payload, list) and all(fits(item, get_args(hint)[0]) for item in payload)
    return (isinstance(payload, str) and "str" in str(hint).replace("dict[str", "")) or (
        isinstance(payload, dict) and "dict[str" in str(hint)
    )


def with_payload(name: str, payload: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        payload = {key: payload}
    return dict(payload)


def value_at(settings: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), settings)


def test_mappings_of_free_form_are_known():
    """What may hold any mapping, so that a new one is looked at: who reads it, and how?"""
    free = {name for name, hint in settings_of(Recipe) if "dict[str" in str(hint)}
    assert free == {
        "data.options", "data.val_options", "cam_model.backbone_args", "seg_model.backbone_args",
        "label.crf", "predict.crf", "label.refiners", "predict.refiners",
    }  # fmt: skip


@pytest.mark.parametrize("name", dict(settings_of(Recipe)))
def test_no_setting_of_a_recipe_imports(name, tmp_path):
    hint, file = dict(settings_of(Recipe))[name], tmp_path / "mine.yaml"
    for payload in PAYLOADS:
        file.write_text(json.dumps(with_payload(name, payload)))
        if fits(payload, hint) and not name.endswith("backbone_args"):  # which is a closed list
            value = value_at(load_recipe(file), name)
            assert (list(value) if isinstance(value, tuple) else value) == payload
        else:
            with pytest.raises(ValueError, match=r"mine\.yaml: "):
                load_recipe(file)


@pytest.mark.parametrize("name", ["class_path", "base", "train_cam.class_path", "init_args"])
def test_no_other_key_of_a_recipe_imports(name, tmp_path):
    for payload in PAYLOADS:
        (tmp_path / "mine.yaml").write_text(json.dumps(with_payload(name, payload)))
        with pytest.raises(
            ValueError, match="recipe" if name == "base" else f"unknown key '{name}"
        ):
            load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", dict(settings_of(LabelConfig)))
def test_no_setting_of_the_inputs_of_labels_imports(name, tmp_path):
    write_and_read_inputs(tmp_path, LabelConfig, name, {"attention_type": "fused"})


@pytest.mark.parametrize("name", dict(settings_of(PredictConfig)))
def test_no_setting_of_the_inputs_of_predictions_imports(name, tmp_path):
    write_and_read_inputs(tmp_path, PredictConfig, name, {"ratios": [1.0]})


def write_and_read_inputs(folder: Path, kind: type, name: str, others: dict[str, Any]) -> None:
    """``inputs.json`` with every payload in one setting, beside those that tell its kind."""
    for payload in PAYLOADS:
        settings = others | {name: payload}
        (folder / "inputs.json").write_text(json.dumps({"settings": settings}))
        if fits(payload, get_type_hints(kind)[name]):
            words = written_conditions(folder, "val").crf
            assert words == "explicit" or TARGET in words
        else:
            with pytest.raises(ValueError, match=rf"inputs\.json: {name}: expected "):
                written_conditions(folder, "val")


@pytest.mark.parametrize(
    "content",
    [
        {"settings": {"ratios": [1.0], "class_path": TARGET}},
        {"settings": {"attention_type": "fused", "init_args": {"class_path": TARGET}}},
        {"settings": [{"class_path": TARGET}]},
        {"settings": TARGET},
        {"settings": None},
        [{"class_path": TARGET}],
        TARGET,
        {"settings": {"ratios": [float("nan")]}},
    ],
)
def test_inputs_json_of_another_form_is_refused(content, tmp_path):
    (tmp_path / "inputs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"inputs\.json: "):
        written_conditions(tmp_path, "val")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "text", ["TAG", "seed: TAG", "data: {options: {x: [TAG]}}", "? TAG\n: 1", "base: TAG"]
)
def test_tags_of_yaml_are_refused(text, tag, tmp_path):
    (tmp_path / "mine.yaml").write_text(text.replace("TAG", tag))
    with pytest.raises(ValueError, match=r"mine\.yaml: line 1: expected YAML"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_set_are_refused(tag):
    with pytest.raises(ValueError, match=r"--set .*: line 1: expected YAML"):
        apply_setting({}, f"data.options.x={tag}")


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WITHOUT_END = {
    "aliases": (ALIASES, "aliases of aliases"),
    "itself": ("name: &a [*a]", "Circular reference"),
    "nested": ("name: " + "[" * 1500, "maximum recursion depth"),
    "nested 2": ("- " * 5000, "maximum recursion depth"),
    "digits": ("seed: " + "1" * 5000, "a number of 5000 characters"),
    "fraction": ("seed: " + "1" * 5000 + ".5", "a number of 5002 characters"),
    "keys": ("{" + ", ".join(f"k{i}: 1" for i in range(10_001)) + "}", "more than 10000 keys"),
    "text": ("name: " + "x" * (1 << 20), "1048582 characters"),
    "no number": ('seed: !!int ""', "expected YAML"),
    "no truth": ("seed: !!bool x", "expected YAML"),
    "merged": ("<<: 3", "expected a mapping or list of mappings for merging"),
    "control": ("name: \x01", "unacceptable character"),
    "zero": ("name: \0", "a zero byte in line 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_END)
@pytest.mark.parametrize("read", [load_recipe, read_variant])
def test_yaml_without_an_end(name, read, tmp_path):
    text, reason = WITHOUT_END[name]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^{file}: .*{reason}") as caught:
        read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        ('!!int "-"', "int", "'-'"),
        ('!!int ""', "int", "''"),
        ("!!int x", "int", "'x'"),
        ("!!float x", "float", "'x'"),
        ('!!float ""', "float", "''"),
        ("!!bool x", "bool", "'x'"),
        ("!!null x", "null", "'x'"),
        ("!!float 1" + ":59" * 300, "float", "'1:59:59"),
        ("[1, {a: !!bool x}]", "bool", "'x'"),
    ],
)
def test_a_tag_with_a_value_that_it_cannot_have(value, kind, shown, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"name: mine\nseed: {value}\n")
    said = rf"expected YAML, got: !!{kind} with the value {re.escape(shown)}.*, which it cannot"
    with pytest.raises(ValueError, match=rf"mine\.yaml: line 2: {said} have$"):
        load_recipe(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=rf"^--set .*: line 1: {said} have$"):
        apply_setting({}, f"seed={value}")


def test_values_with_their_own_tags_are_read():
    tree: dict[str, Any] = {}
    for key, value in {"a": "!!int 7", "b": "!!float 7", "c": "!!bool no", "d": "!!null ~"}.items():
        apply_setting(tree, f"{key}={value}")
    assert tree == {"a": 7, "b": 7.0, "c": False, "d": None}


@pytest.mark.parametrize("number", ["99999999999999999999", "-9223372036854775808", "1e300"])
def test_numbers_of_usual_length_are_read(number):
    tree: dict[str, Any] = {}
    apply_setting(tree, f"seed={number}")
    assert isinstance(tree["seed"], int | float)
