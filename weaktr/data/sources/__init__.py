"""Data sets of several kinds, each described as a `Manifest`.

To add one: CONTRIBUTING.md, "A data source".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from weaktr.data.manifest import Exif, Manifest
from weaktr.data.problems import Problem
from weaktr.data.sources import coco14, folder, scenes, tar, voc12

__all__ = ["SOURCES", "load_manifest"]


def _images(
    root: str | Path,
    *,
    split: str,
    classes: Sequence[str] = (),
    exif: Exif = "ignore",
    problems: list[Problem] | None = None,
) -> Manifest:
    return folder.unlabelled(root, classes, split=split, exif=exif, problems=problems)


def _scenes(
    root: str | Path,
    *,
    split: str,
    count: int,
    size: int = 64,
    seed: int = 0,
    masks: bool = True,
    problems: list[Problem] | None = None,  # stays empty: scenes are drawn, not declared
) -> Manifest:
    return scenes.scenes(root, count, size=size, seed=seed, split=split, masks=masks)


#: source -> function of (root, split=..., **options), for `load_manifest`.
SOURCES: dict[str, Callable[..., Manifest]] = {
    "voc12": voc12.voc12,
    "coco14": coco14.coco14,
    "folder": folder.folder,
    "tar": tar.tar,
    "images": _images,
    "scenes": _scenes,
}


def load_manifest(source: str, root: str | Path, split: str = "train", **options: Any) -> Manifest:
    """Describe a split of a data set.

    Args:
        source: ``voc12``, ``coco14``, ``folder``, ``tar`` (shards), ``images`` (no labels),
            ``scenes`` (drawn); or ``manifest``: `root` is a JSON written by `Manifest.save`.
        root: the data set's folder.
        split: the part of it.
        options: further arguments of the source's function of the same name; for ``scenes`` also
            ``count``. ``problems=[]`` collects faults instead of raising them.

    Returns:
        The manifest.

    Raises:
        ValueError: unknown source or option, or what the source raises.
    """
    if source == "manifest":
        return Manifest.load(root)
    if source not in SOURCES:
        raise ValueError(f"source: expected one of {[*SOURCES, 'manifest']}, got {source!r}")
    describe = SOURCES[source]
    try:
        inspect.signature(describe).bind(root, split=split, **options)
    except TypeError as error:
        raise ValueError(f"options of source {source!r}: {error}") from error
    for name, value in options.items():
        if name != "problems":
            _require_kind(describe, name, value)
    return describe(root, split=split, **options)


#: The annotations of sources' arguments in words.
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "str | Path | None": "a path",
    "str | Path | Instances | None": "a path",
    "Sequence[str]": "a list of names (no, yes, 1.0 in quotes)",
    "Sequence[str] | str | Path | None": "a list of names (no, yes, 1.0 in quotes) or its path",
    "Exif": "one of ignore, apply",
    "Ids": "90, 80 or json",
    "Literal[90, 80]": "90 or 80",
}


def _require_kind(describe: Callable[..., Manifest], name: str, value: Any) -> None:
    """Raise `ValueError` unless an option is of the type that its source declares.

    Types are taken strictly: the text "false" is no false, and 1 is no true.
    """
    settings = ConfigDict(strict=True, arbitrary_types_allowed=True)
    hint = get_type_hints(describe)[name]
    try:
        TypeAdapter(hint, config=settings).validate_python(value)
    except ValidationError as error:
        declared = str(inspect.signature(describe).parameters[name].annotation)
        expected = _KINDS.get(declared, declared)
        raise ValueError(f"{name}: expected {expected}; got {value!r}") from error
