"""The splits of a folder of photographs: their label files, and what they have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from weaktr.data.classes import Classes
from weaktr.data.manifest import Manifest, Sample, without_a_place
from weaktr.data.problems import DataError, Problem
from weaktr.messages import few

#: What the splits end in that `weaktr init` writes beside a train.csv of the user's.
PART = "_part"


def family(split: str) -> tuple[str, ...]:
    """The splits that belong together: train, val and test, or train_part, val_part and test_part.

    Args:
        split: one of them, or any other, which belongs to the first three.
    """
    ending = PART if split.endswith(PART) else ""
    return tuple(f"{name}{ending}" for name in ("train", "val", "test"))


def label_file(root: str | Path, split: str = "train") -> Path | None:
    """The file that says what the images of a folder show, see `folder`; None = there is none.

    Raises:
        ValueError: there are a CSV and a JSON of one name.
    """
    return _file_called(root, split) or _file_called(root, "labels")


def _file_called(root: str | Path, stem: str) -> Path | None:
    """The label file of a name without suffix; errors as in `label_file`."""
    files = [Path(root) / f"{stem}{suffix}" for suffix in (".csv", ".json")]
    found = [file for file in files if os.path.isfile(file)]
    if len(found) > 1:
        raise ValueError(f"{found[0]}: expected one label file, there is {found[1].name} as well")
    return found[0] if found else None


def label_files(root: str | Path) -> dict[str, Path]:
    """The files that together say what the photographs of a folder show, by their splits.

    ``train_part``, ``val_part`` and ``test_part`` where ``weaktr init`` wrote them, else ``train``,
    ``val`` and ``test``, each a CSV or JSON; ``labels`` in place of a missing ``train``. Splits
    without a file are not among them.

    Raises:
        ValueError: there are a CSV and a JSON of one name.
    """
    splits = family(f"train{PART}")
    if _file_called(root, splits[0]) is None:
        splits = family("train")
    first, *others = splits
    files = {first: label_file(root, first)} | {name: _file_called(root, name) for name in others}
    return {split: file for split, file in files.items() if file is not None}


def joined(manifests: Sequence[Manifest]) -> tuple[Sample, ...]:
    """The samples of several splits of a folder, each photograph once.

    Raises:
        DataError: splits say different things of a photograph, or results of two of their
            photographs would have one place: they differ in the suffix alone, or see
            `without_a_place`.
    """
    samples: dict[str, Sample] = {}
    name_of: dict[Path, str] = {}
    faults: list[Problem] = []
    for manifest in manifests:
        for sample in manifest:
            first = samples.get(name_of.get(sample.image, sample.name))
            if first is None:
                samples[sample.name], name_of[sample.image] = sample, sample.name
            elif first.image != sample.image:
                message = f"differs in the suffix alone from {first.image.name} at {first.source}"
                faults.append(Problem(str(sample.image), sample.source, message))
            elif first.labels != sample.labels:
                here, there = (_in_words(one, manifest.classes) for one in (sample, first))
                message = f"labels: {here} here, {there} at {first.source}: correct one of them"
                faults.append(Problem(str(sample.image), sample.source, message))
    for name, message in without_a_place(samples).items():
        faults.append(Problem(str(samples[name].image), samples[name].source, message))
    if faults:
        raise DataError(faults)
    return tuple(samples.values())


def _in_words(sample: Sample, classes: Classes) -> str:
    """The classes that a sample shows."""
    return few([classes.names[index] for index in sample.labels or ()]) or "none"
