"""Recipes: YAML and ``--set key=value`` -> `weaktr.config.Recipe`.

A recipe file states only what differs from the defaults, or, with ``base: OTHER``, from another
recipe (from several, of which the later ones win, with a list). An unknown key is an error that
names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from jsonargparse import ArgumentParser, get_loader

from weaktr.config import CamModelConfig, Recipe, SegModelConfig

T = TypeVar("T")

#: Where recipes that are asked for by name live (shipped with the package).
RECIPES = Path(__file__).parent / "configs"
#: In ``--set``, short for the weights of every model that has the recipe's backbone.
MODEL_WEIGHTS = "model.weights"


def recipe_names() -> list[str]:
    """The recipes that can be asked for by name."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by name (``demo``) or path (``mine/voc.yaml``).

    Raises:
        ValueError: there is no such recipe; the message lists the known names.
    """
    for candidate in (Path(name), RECIPES / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"recipe: expected a YAML file or one of {', '.join(recipe_names())}; got {str(name)!r}"
        f"{_did_you_mean(str(name), recipe_names())}"
    )


def load_recipe(name: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` settings.

    Args:
        name: a recipe's name or YAML file.
        settings: such as ``"train_cam.epochs=5"``; values are YAML. ``model.weights=FILE`` is for
            the recipe's backbone: of stage 2, and of stage 1 where that has the same one or is
            all there is.

    Raises:
        ValueError: no such recipe, not YAML, an unknown key, or a value of the wrong type.
    """
    path = find_recipe(name)
    tree = _read_tree(path)
    tree.setdefault("name", path.stem)
    for setting in settings:
        key, _, value = setting.partition("=")
        models = _models_of_the_backbone(tree) if key.strip() == MODEL_WEIGHTS else ()
        for one in [f"{model}.weights={value}" for model in models] or [setting]:
            apply_setting(tree, one)
    return make(Recipe, tree, origin=str(path))


def make(kind: type[T], tree: Mapping[str, Any], origin: str = "") -> T:
    """Build a settings dataclass from a tree of plain values, checking keys and types.

    Args:
        kind: `Recipe` or one of its parts.
        tree: nested mapping; missing keys keep their defaults.
        origin: where the tree comes from, for messages.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    _check_keys(kind, tree, "", origin)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    try:
        values = parser.parse_object(dict(tree)).as_dict()
    except ArgumentError as error:
        raise ValueError(f"{origin}: {error}" if origin else str(error)) from error
    return _build(kind, values)


def with_settings(config: T, settings: Iterable[str]) -> T:
    """`config`, a settings dataclass, with ``key=value`` changes as ``--set`` takes them.

    Raises:
        ValueError: not ``key=value``, an unknown key, or a value of the wrong type.
    """
    tree = as_tree(config)
    for setting in settings:
        apply_setting(tree, setting)
    return make(type(config), tree, origin="--set")


def as_tree(settings: Any) -> dict[str, Any]:
    """The plain values of a settings dataclass (JSON types only)."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return tree


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML (JSON values, one key a line)."""
    lines: list[str] = []
    for key, value in as_tree(recipe).items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {k}: {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _read_tree(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain values of a recipe file, over those of its bases; `above` are based on it."""
    tree = _parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got {type(tree).__name__}")
    bases = tree.pop("base", [])
    _check_keys(Recipe, tree, "", str(path))
    under: dict[str, Any] = {}
    family = (*above, path.resolve())
    for base in [bases] if isinstance(bases, str) else bases:
        beside = path.parent / f"{base}.yaml"
        file = beside if beside.is_file() else find_recipe(base)
        if file.resolve() in family:
            raise ValueError(f"{path}: base: {base!r} is itself based on {path.stem}")
        under = _over(Recipe, under, _read_tree(file, family))
    under.pop("name", None)
    return _over(Recipe, under, tree)


def _over(kind: type, under: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` over `under`: groups of settings are merged, any other value replaces the old one."""
    hints = get_type_hints(kind)
    merged = dict(under)
    for key, value in tree.items():
        group = dataclasses.is_dataclass(hints[key]) and key in merged
        merged[key] = _over(hints[key], merged[key], value) if group else value
    return merged


def _models_of_the_backbone(tree: Mapping[str, Any]) -> list[str]:
    """The models that `MODEL_WEIGHTS` is short for."""
    backbones = {
        "cam_model": tree.get("cam_model", {}).get("backbone", CamModelConfig.backbone),
        "seg_model": tree.get("seg_model", {}).get("backbone", SegModelConfig.backbone),
    }
    last = "seg_model" if "train_seg" in tree.get("stages", Recipe.stages) else "cam_model"
    return [model for model, backbone in backbones.items() if backbone == backbones[last]]


def _parse_yaml(text: str, origin: str) -> Any:
    from yaml import YAMLError

    try:
        return get_loader("yaml")(text)
    except YAMLError as error:
        raise ValueError(f"{origin}: expected YAML, got: {error}") from error


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    key, separator, value = setting.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set: expected key=value such as train_cam.epochs=5, got {setting!r}")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ValueError(f"--set {setting}: {parent!r} is a value, it has no {leaf!r}")
        tree = below
    tree[leaf] = _parse_yaml(value, f"--set {setting}")


def _check_keys(kind: type, tree: Mapping[str, Any], prefix: str, origin: str) -> None:
    hints = get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            where = f"{origin}: " if origin else ""
            raise ValueError(
                f"{where}unknown key {prefix + str(key)!r}{_did_you_mean(str(key), hints, prefix)}"
            )
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{origin}: {prefix + key}: expected a mapping of "
                    f"{', '.join(get_type_hints(hints[key]))}; got {value!r}"
                )
            _check_keys(hints[key], value, f"{prefix}{key}.", origin)


def _did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    names: Sequence[str] = list(known)
    begun = [name for name in names if name.startswith(word)]
    near = begun or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f" - did you mean {' or '.join(repr(prefix + name) for name in near)}?"
    return f"; known here: {', '.join(names)}" if names else ""


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[key] = _build(hint, value)
        elif isinstance(value, list) and get_origin(hint) is tuple:
            arguments[key] = tuple(value)
        else:
            arguments[key] = value
    return kind(**arguments)
