"""Recipes: YAML and ``--set key=value`` -> `weaktr.config.Recipe`.

A recipe file states only what differs from the defaults, or, with ``base: OTHER``, from another
recipe. ``base`` may be a list of recipes, of which later ones override earlier ones. Where a recipe
names another ``data.source`` than its base, the base's ``options`` and ``val_options`` are dropped,
since they are arguments of that source; splits and root stay. An unknown key is an error that names
the nearest known one. Files hold JSON's values only: nothing in them is imported or run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import yaml

from weaktr.config import DataConfig, Recipe
from weaktr.files import read_text
from weaktr.messages import brief
from weaktr.ranges import SHOWN, SettingsError, shown

T = TypeVar("T")

#: A settings dataclass -> the types of its fields.
_types_of: Callable[[type], dict[str, Any]] = cache(get_type_hints)
#: The folder of the recipes that have a name (part of the package).
RECIPES = Path(__file__).parent / "configs"
#: Keys of `DataConfig` that mean something else, or nothing, for another source.
OF_SOURCE = ("options", "val_options")
#: In ``--set``, short for the weights of every model that has the recipe's backbone.
MODEL_WEIGHTS = "model.weights"


def recipe_names() -> list[str]:
    """The names of the recipes in `RECIPES`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by name (``demo``) or path (``mine/voc.yaml``).

    Raises:
        ValueError: there is no such recipe; says what may be meant.
    """
    path = Path(name)
    for candidate in (path, RECIPES / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    inside = path / "recipe.yaml"
    if inside.is_file():
        raise ValueError(f"recipe: expected a YAML file, got the folder {path}; take {inside}")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ValueError(f"recipe: expected a YAML file, got {str(name)!r}, where there is none")
    near = difflib.get_close_matches(str(name), recipe_names(), n=1, cutoff=0.5)
    told = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"recipe: expected a YAML file or one of {', '.join(recipe_names())}; got {str(name)!r}"
        f"{told}"
    )


def load_recipe(name: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` settings.

    Args:
        name: a recipe's name or YAML file.
        settings: such as ``"train_cam.epochs=5"``; values are YAML. ``model.weights=FILE`` gives
            weights to the backbone of stage 2, and to that of stage 1 if it is the same; in a
            recipe without stage 2, to that of stage 1. Wherever it stands, backbones are those of
            all settings, and weights of one model (``cam_model.weights=FILE``) go before it.

    Raises:
        ValueError: no such recipe, not YAML, an unknown key, or values of the wrong type.
    """
    path = find_recipe(name)
    tree = _read_tree(path)
    tree.setdefault("name", path.stem)
    return _made_with(Recipe, tree, settings, str(path))


def make(kind: type[T], tree: Mapping[str, Any], origin: str = "") -> T:
    """Build a settings dataclass from a tree of plain values, checking keys, types and ranges.

    Args:
        kind: `Recipe` or one of its parts.
        tree: nested mapping of JSON's types; missing keys keep their defaults.
        origin: where the tree comes from, for messages.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or values of the wrong type or
            outside their range, one line each.
    """
    where = f"{origin}: " if origin else ""
    _check_keys(kind, tree, "", where)
    faults: dict[str, str] = {}
    settings = _made(kind, tree, "", faults)
    if faults:
        raise ValueError("\n".join(f"{where}{name}: {text}" for name, text in faults.items()))
    return settings


def _made(kind: type[T], tree: Mapping[str, Any], above: str, faults: dict[str, str]) -> T:
    """Settings of a tree whose keys are known; `faults` gets what is wrong, by its full name."""
    hints = _types_of(kind)
    values = {
        name: _made(hints[name], value, f"{above}{name}.", faults)
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in tree.items()
    }
    try:
        return kind(**values)
    except SettingsError as error:
        faults |= {f"{above}{name}": text for name, text in error.faults.items()}
        return kind()  # for the checks of the settings around it


def with_settings(config: T, settings: Iterable[str]) -> T:
    """`config`, a settings dataclass, with ``key=value`` changes as ``--set`` takes them.

    Raises:
        ValueError: not ``key=value``, an unknown key, or a value of the wrong type.
    """
    return _made_with(type(config), as_tree(config), settings, "--set")


def _made_with(kind: type[T], tree: dict[str, Any], settings: Iterable[str], origin: str) -> T:
    """`make` of a tree that ``key=value`` settings change first; `MODEL_WEIGHTS` is the last."""
    named, of_models = set(), []
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if kind is Recipe and key == MODEL_WEIGHTS:
            of_models.append(setting)
        else:
            apply_setting(tree, setting)
            named.add(key)
    if of_models:
        for model in _models_of_the_backbone(make(Recipe, tree, origin=origin)):
            if f"{model}.weights" not in named:
                apply_setting(tree, of_models[-1].replace("model", model, 1))
    return make(kind, tree, origin=origin)


def as_tree(settings: Any) -> dict[str, Any]:
    """The plain values of a settings dataclass (JSON types only)."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return tree


def identity(settings: Any, *, is_former: bool = False) -> Any:
    """The plain values of settings that results depend on, for fingerprints.

    Settings that came later (`weaktr.config.later`) are left out where they say what older versions
    did, and those without effect (`weaktr.config.without_effect`) have their default, at any depth.
    A value that other versions called otherwise (`weaktr.config.renamed`) has its former name with
    `is_former`; else its own, with a mark where that once stood for another value.
    """
    if not dataclasses.is_dataclass(settings):
        return settings
    tree = as_tree(settings)
    for field in dataclasses.fields(settings):
        is_free = "without_effect" in field.metadata
        value = field.default if is_free else getattr(settings, field.name)
        if "later" in field.metadata and value == field.metadata["later"]:
            del tree[field.name]
        elif is_free:
            tree[field.name] = value
        elif dataclasses.is_dataclass(value):
            tree[field.name] = identity(value, is_former=is_former)
        elif "former_names" in field.metadata:
            names = field.metadata["former_names"]
            own = f"now {value}" if value in names.values() else value
            tree[field.name] = names.get(value, value) if is_former else own
    return tree


def changes(settings: Any, above: str = "") -> list[str]:
    """What differs from the defaults in settings, each as ``--set`` takes it."""
    default, found = type(settings)(), []
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{above}{field.name}"
        if dataclasses.is_dataclass(value):
            found += changes(value, f"{name}.")
        elif value != getattr(default, field.name):
            text = json.dumps(value, ensure_ascii=False)
            found.append(f"{name}={value if isinstance(value, str) else text}")
    return found


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
    """The plain values of a recipe file, over those of its bases.

    `above`: the files that are based on this one, to find a circle.
    """
    tree = parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else type(tree).__name__
        raise ValueError(f"{path}: expected a YAML mapping, got {got}")
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(
            f"{path}: base: expected a recipe or a list of recipes, got {shown(bases)}"
        )
    _check_keys(Recipe, tree, "", f"{path}: ")
    under: dict[str, Any] = {}
    family = (*above, path.resolve())
    for base in bases:
        beside, own = path.parent / f"{base}.yaml", RECIPES / f"{base}.yaml"
        if beside.resolve() == path.resolve() and own.is_file():  # which it is named after
            beside = own
        file = beside if beside.is_file() else find_recipe(base)
        if file.resolve() in family:
            raise ValueError(f"{path}: base: {base!r} is itself based on {path.stem}")
        under = _over(Recipe, under, _read_tree(file, family))
    under.pop("name", None)
    return _over(Recipe, under, tree)


def _over(kind: type, under: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` over `under`: groups of settings are merged, any other value replaces the old one.

    Options of a data source are not merged into those of another one.
    """
    hints = _types_of(kind)
    merged = dict(under)
    if kind is DataConfig and tree.get("source", _source(under)) != _source(under):
        merged = {key: value for key, value in under.items() if key not in OF_SOURCE}
    for key, value in tree.items():
        group = dataclasses.is_dataclass(hints[key]) and key in merged
        merged[key] = _over(hints[key], merged[key], value) if group else value
    return merged


def _source(data: Mapping[str, Any]) -> Any:
    """The data source of a tree of `DataConfig`."""
    return data.get("source", DataConfig.source)


def _models_of_the_backbone(recipe: Recipe) -> list[str]:
    """The models that `MODEL_WEIGHTS` stands for."""
    backbones = {name: getattr(recipe, name).backbone for name in ("cam_model", "seg_model")}
    last = "seg_model" if "train_seg" in recipe.stages else "cam_model"
    return [model for model, backbone in backbones.items() if backbone == backbones[last]]


#: The types that YAML may hold.
_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
}


#: Most characters of a number, keys of a mapping, and characters of all values as JSON (aliases
#: repeat what they stand for, so that a few lines can describe more than any memory holds).
MOST_DIGITS, MOST_KEYS, MOST_CHARACTERS = 1000, 10_000, 1 << 20


class PlainLoader(yaml.SafeLoader):
    """YAML with JSON's types: ``1e-4`` is a number, a date is text, keys are text and unique.

    Whole numbers are decimal: ``010``, ``0x10`` and ``22:30``, which YAML 1.1 takes for 8, 16 and
    1350, are text. A key without a value is refused, so that null is written out.
    """

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in _TAGS
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if not tag.endswith((":timestamp", ":float", ":int"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, value in node.value:
            kind = key.tag.rpartition(":")[2]
            problem = ""
            if kind not in ("str", "merge"):
                problem = f"a key of type {kind}, which has to be text (in quotes)"
            elif key.value in keys:
                problem = f"the key {key.value!r} a second time"
            elif value.tag.endswith(":null") and value.value == "":
                problem = f"no value for {key.value!r} (null stands for none)"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            problem = f"a mapping of more than {MOST_KEYS} keys"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        problem = f"!!{kind} with the value {brief(node.value)}, which it cannot have"
        if kind == "null" and node.value not in ("", "~", "null", "Null", "NULL"):
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_scalar(self, node: Any) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > MOST_DIGITS:
            problem = f"a number of {len(node.value)} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)


PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile("[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
# 1.5, 1., .5, 1e-4, 1_000.5, -.inf, .nan. YAML 1.1 requires a point in all.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:
        [-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, origin: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """The values in a text of YAML, as JSON's types.

    Args:
        text: the file's content.
        origin: the file, for messages.
        loader: with its own constructors.

    Raises:
        ValueError: no YAML, tags that ask for more, or values without an end.
    """
    try:
        return json.loads(_json_of(text, loader))  # type: ignore[arg-type]  # a class has a hash
    except (
        yaml.YAMLError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(f"{origin}: {line}expected YAML, got: {problem}") from error


@lru_cache(maxsize=16)
def _json_of(text: str, loader: type[PlainLoader]) -> str:
    """YAML as JSON, in which two aliases of one value are two; a recipe is read several times.

    Raises:
        ValueError: it is too long; and what PyYAML raises.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters")
    parts, size = [], 0
    for part in json.JSONEncoder().iterencode(yaml.load(text, loader)):
        parts.append(part)
        size += len(part)
        if size > MOST_CHARACTERS:
            raise ValueError("aliases of aliases, which repeat too much")
    return "".join(parts)


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Put ``key=value`` into a tree of plain values.

    Raises:
        ValueError: no ``key=``, a value that is not YAML, or a key below a plain value.
    """
    key, separator, value = setting.partition("=")
    if not separator or not key.strip():
        raise ValueError(
            f"--set: expected key=value such as train_cam.epochs=5, got {shown(setting)}"
        )
    origin = "--set " + " ".join(setting.split())[:SHOWN]
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ValueError(f"{origin}: {parent!r} is a value, it has no {leaf!r}")
        tree = below
    tree[leaf] = parse_yaml(value, origin)


def _check_keys(kind: type, tree: Any, prefix: str, where: str) -> None:
    """Raise ValueError for an unknown key; messages begin with `where`, keys with `prefix`."""
    hints = _types_of(kind)
    if not isinstance(tree, Mapping):
        name = f"{prefix.removesuffix('.')}: " if prefix else ""
        raise ValueError(
            f"{where}{name}expected a mapping of {', '.join(hints)}; got {shown(tree)}"
        )
    for key, value in tree.items():
        if key not in hints:
            near = _did_you_mean(str(key), hints, prefix)
            raise ValueError(f"{where}unknown key {shown(prefix + str(key))}{near}")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(hints[key], value, f"{prefix}{key}.", where)


def _did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    names: Sequence[str] = list(known)
    longer = [name for name in names if name.startswith(word)]
    near = longer or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f" - did you mean {' or '.join(repr(prefix + name) for name in near)}?"
    return f"; known here: {', '.join(names)}" if names else ""
