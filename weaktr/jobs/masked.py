"""Photographs and their masks: of a run, or of ``weaktr label`` and ``weaktr predict``.

What reports and exports start from.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weaktr.contents import CONTENTS, Contents
from weaktr.data import IGNORE, Classes, Manifest, Sample
from weaktr.data.layout import IMAGE_SUFFIXES, require_folder
from weaktr.data.listing import paths_but_results
from weaktr.data.manifest import Exif, require_exif
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import MaskFolder
from weaktr.data.parallel import ordered_map
from weaktr.labelling.masks import is_of
from weaktr.outputs import INPUTS, RECIPE, has_inputs, read_inputs
from weaktr.recipes import load_recipe
from weaktr.shards.fetch import is_address
from weaktr.shards.inputs import TarShards
from weaktr.stages.run import MODEL, Run

log = logging.getLogger("weaktr")

#: The stages and commands that make masks.
MAKERS = ("label", "predict")


@dataclass(frozen=True)
class Masked:
    """Photographs with masks of one kind.

    Args:
        maker: "label" (pseudo labels, the image-level labels were given) or "predict".
        manifest: the photographs that were to get masks, and their classes; those of
            `masks.entries` have one.
        masks: verified; those that somebody corrected count as they are now, those of photographs
            that have changed since as unusable.
        run: to which they belong; None = to a command.
    """

    maker: str
    manifest: Manifest
    masks: MaskFolder
    run: Run | None

    @property
    def samples(self) -> list[Sample]:
        """The photographs whose masks can be used, in the manifest's order."""
        return [sample for sample in self.manifest if self.masks.is_usable(sample.name)]


def masked_in(folder: Path) -> list[Masked]:
    """The photographs with masks of a folder, pseudo labels first.

    Args:
        folder: of a run, or ``--out`` of ``weaktr label`` or ``weaktr predict``.

    Raises:
        ValueError: it is neither, or its photographs are no longer where they were.
    """
    if (folder / RECIPE).is_file():
        run = Run(load_recipe(folder / RECIPE), folder)
        return [_of_stage(run, maker) for maker in MAKERS if (run.of(maker) / "masks").is_dir()]
    stored = read_inputs(folder)
    about = (stored or {}).get("about")
    if stored is None or not isinstance(about, dict) or about.get("command") not in MAKERS:
        older = "" if stored is None else " (one of an older version: start its command again)"
        raise ValueError(
            f"{folder}: expected the folder of a run, or --out of weaktr label or weaktr predict"
            f"{older}"
        )
    return [_of_command(folder, about, in_tars=_are_in_tars(stored))]


def held_out_by(masked: Masked) -> Callable[[Sample], bool]:
    """A function that says whether the model of masks was not trained on a photograph.

    The run of the model says it, where it is there; of photographs that are not in it, or where it
    is not known, predictions count as of held-out ones and pseudo labels not.
    """
    try:
        run = _run_of_model(masked)
        splits = [] if run is None else [run.train, run.val]
    except (OSError, ValueError):
        splits = []
    train, val = ({os.path.realpath(s.image) for s in split} for split in splits or ((), ()))

    def is_held_out(sample: Sample) -> bool:
        image = os.path.realpath(sample.image)
        return image not in train and (image in val or masked.maker == "predict")

    return is_held_out


def _run_of_model(masked: Masked) -> Run | None:
    """The run of the model that made masks; None = it is not where it was, or they have none."""
    if masked.run is not None:
        return masked.run
    source = (read_inputs(masked.masks.folder) or {}).get("source")
    if not isinstance(source, str) or Path(source).name != MODEL:
        return None
    folder = Path(source).parent.parent
    if not (folder / RECIPE).is_file():
        return None
    return Run(load_recipe(folder / RECIPE), folder)


def noted_classes(folder: Path) -> Classes | None:
    """The classes of masks or CAMs in a folder, as what made them noted in it; None = it did not.

    Args:
        folder: of a stage in a run, or ``--out`` of a command.

    Raises:
        ValueError: the note is damaged.
    """
    stored = (read_inputs(folder) if has_inputs(folder) else None) or {}
    about, of_stage = stored.get("about"), stored.get("classes")
    names = about.get("classes") if isinstance(about, dict) else None
    if names is None and isinstance(of_stage, list) and of_stage:
        names = of_stage[0]  # of each split of the stage; they are the same
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{folder}: {INPUTS}: classes: expected a list of names, got {names!r:.60}"
        )
    return Classes(tuple(names))


def _of_stage(run: Run, maker: str) -> Masked:
    manifest = run.train_images if maker == "label" else run.val
    masks = MaskFolder(
        run.of(maker), verify=True, contents=run.contents, num_labels=manifest.classes.num_labels
    )
    known = {sample.name for sample in manifest}
    for name in masks.entries:
        if name not in known and masks.is_usable(name):
            masks.unusable[name] = f"{name}: is no longer among the photographs of {run.folder}"
    _note_changed(masks, manifest.samples, run.contents, "weaktr-train")
    return Masked(maker, manifest, masks, run)


def _note_changed(
    masks: MaskFolder, samples: Sequence[Sample], contents: Contents, command: str
) -> None:
    """Have masks count as unusable whose photographs have changed since `command` made them."""
    there = [sample for sample in samples if masks.is_usable(sample.name)]
    are_of = ordered_map(lambda s: is_of(contents, masks.entries[s.name], s.image), there)
    for sample, is_same in zip(there, are_of, strict=True):
        if not is_same:
            masks.unusable[sample.name] = (
                f"{sample.image}: has changed since its mask was made; start {command} again"
            )


def _are_in_tars(stored: Mapping[str, Any]) -> bool:
    """Whether the photographs of a command were in tars, by its ``inputs.json``."""
    results = stored.get("results")
    return isinstance(results, Mapping) and results.get("labels") != "list"


def _of_command(folder: Path, about: Mapping[str, Any], *, in_tars: bool) -> Masked:
    """Of a command: its photographs with the labels that they were given."""
    names, place = about.get("classes"), str(about.get("photographs"))
    try:
        exif = require_exif(str(about.get("exif", "ignore")))
        num_labels = None if names is None else Classes(tuple(names)).num_labels
        files = _photographs(place, exif, in_tars=in_tars)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: its photographs: {error}") from error
    contents = Contents(folder / CONTENTS)
    masks = MaskFolder(folder, verify=True, contents=contents, num_labels=num_labels)
    entries = masks.entries | masks.without
    if names is None:  # CAMs in files name no classes
        shown = (label for entry in entries.values() for label in entry.labels)
        highest = max((label for label in shown if label != IGNORE), default=0)
        names = [f"class {index}" for index in range(highest)]
    samples = []
    for name, entry in entries.items():
        image = files.image_of(entry, entries, contents)
        if image is not None:
            turned = entry.read_as or exif
            samples.append(Sample(name, image, entry.given, None, str(folder), exif=turned))
        elif masks.is_usable(name):
            masks.unusable[name] = f"{name}: its photograph is no longer in {place}"
    _note_changed(masks, samples, contents, f"weaktr {about['command']}")
    with suppress(OSError):  # a folder that may only be read
        contents.save()
    manifest = Manifest("images", "all", Classes(tuple(names)), tuple(samples))
    return Masked(str(about["command"]), manifest, masks, None)


@dataclass(frozen=True)
class _Files:
    """The photographs of a folder, of tars or of a manifest: path without suffix -> files."""

    by_path: Mapping[str, list[Path]]

    def image_of(self, entry: MaskEntry, names: Collection[str], contents: Contents) -> Path | None:
        """The photograph of a mask; None = it is not there any more.

        Lists of data sets name photographs without their folders: where none has the name as its
        path, it is the one in any folder from which the mask was made.

        Args:
            entry: of the mask.
            names: of all masks.
            contents: what is known of files.
        """
        found = self._called(entry.name, names)
        if len(found) > 1:
            found = [image for image in found if is_of(contents, entry, image)] or found
        elif not found and entry.inputs:
            images = self._deeper(entry.name)
            found = [image for image in images if is_of(contents, entry, image)]
        return next(iter(found), None)

    def _called(self, name: str, names: Collection[str]) -> list[Path]:
        """The photographs that may be those of a mask, the likeliest first.

        Of a list of labels, a is images/a where there is one; of all that is in a folder, a is a.
        """
        inside = [f"{folder}/{name}" for folder in ("images", "JPEGImages")]
        order = [name, *inside] if any(one in names for one in inside) else [*inside, name]
        return [image for one in order for image in self.by_path.get(one, ())]

    def _deeper(self, name: str) -> list[Path]:
        """The photographs of a name in any folder."""
        paths = self._by_last_part.get(name.rpartition("/")[2], ())
        return [i for path in paths if path.endswith(f"/{name}") for i in self.by_path[path]]

    @cached_property
    def _by_last_part(self) -> Mapping[str, list[str]]:
        """Last part of a path -> the paths."""
        paths: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.by_path:
            paths[path.rpartition("/")[2]].append(path)
        return paths


def _photographs(place: str, exif: Exif, *, in_tars: bool) -> _Files:
    """The photographs of a command.

    Args:
        place: the folder, the tars or the manifest.
        exif: see `Sample`.
        in_tars: whether it means tars.

    Raises:
        ValueError: there are none there, or they are not on this machine.
        OSError: something cannot be read; tars are left out then, and the log says so.
    """
    files: defaultdict[str, list[Path]] = defaultdict(list)
    if is_address(place):
        raise ValueError(f"{place}: is in another place: expected photographs on this machine")
    if place.endswith(".json") and Path(place).is_file():
        for sample in Manifest.load(place):
            files[sample.name].append(sample.image)
    elif in_tars:
        shards = TarShards(place, "none", None, exif)
        for shard in shards.names:
            with ExitStack() as stack:
                try:
                    samples = shards.read(shard, stack, None).samples
                except (OSError, ValueError) as error:
                    log.warning("left out: %s", error)
                    continue
                for sample in samples:
                    files[f"{shard}/{sample.name}"].append(sample.image)
    else:
        root = require_folder(place)
        for path in map(Path, sorted(paths_but_results(root))):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files[path.relative_to(root).with_suffix("").as_posix()].append(path)
    return _Files(files)
