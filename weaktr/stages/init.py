"""What a first training on somebody's photographs starts from: label files of the splits, a recipe.

``weaktr init`` writes them. Nothing of the user's is replaced: which files are weaktr's own, a
record beside them says, with their digests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weaktr.config import PLAIN_WORD, Recipe
from weaktr.contents import digest_of
from weaktr.data.label_files import read_label_file
from weaktr.data.own import OwnPhotographs, look_at
from weaktr.data.splits import PART, family
from weaktr.files import csv_bytes, read_json_object, require_replaceable, write_bytes, write_json
from weaktr.messages import counted, few, listed, one_line
from weaktr.recipes import as_tree, load_recipe
from weaktr.seals import BLANK, is_sealed, sealed

log = logging.getLogger("weaktr")

BASE = "own_dinov2_s"
#: What `weaktr init` wrote into a folder: names of files and the SHA-256 that they may have; of
#: which labels, and with which options.
RECORD = ".weaktr-init.json"
SUFFIXES = (".csv", ".json")
#: Options of ``weaktr init`` that count until others are given.
OPTIONS = ("labels", "classes", "hold_out", "weights", "exif")
#: The only files that a record may name.
SPLIT_FILES = {
    f"{split}{suffix}"
    for one in ("train", f"train{PART}")
    for split in family(one)
    for suffix in SUFFIXES
}


@dataclass(frozen=True)
class Choices:
    """What the user chose for the recipe.

    Args:
        exif: "apply" or "ignore".
        turned: photographs that EXIF turns.
        weights: a file; None = timm's.
        epochs: of stage 2; None = as in the base.
    """

    exif: str
    turned: int
    weights: Path | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Splits:
    """The label files of both splits.

    Args:
        train, val: names of the splits.
        files: to be written: name -> content; empty where the user's own are used.
        folder: in which they lie.
    """

    train: str
    val: str
    files: Mapping[str, bytes]
    folder: Path


def own_files(folder: Path) -> set[Path]:
    """The label files in a folder that weaktr wrote and that are nobody's since.

    Where somebody has changed one of a pair, both are theirs: the other one may be the only place
    of its labels. It is not where the changed one has all its rows.
    """
    same, changed = _recorded(folder)
    return {
        file
        for file in same
        if all(_holds(other, file) for other in changed if _ending(other) == _ending(file))
    }


def _recorded(folder: Path) -> tuple[set[Path], set[Path]]:
    """The label files in a folder that weaktr wrote: as they were, and changed since."""
    record = folder / RECORD
    if not is_sealed(record):
        return set(), set()
    files = read_json_object(record).get("files", {})
    names = [name for name in SPLIT_FILES if isinstance(files, dict) and name in files]
    there = {folder / name for name in names if (folder / name).is_file()}
    same = {file for file in there if _digest(file.read_bytes()) in files[file.name]}
    return same, there - same


def _ending(file: Path) -> str:
    """What the names of a pair of splits have in common."""
    return PART if file.stem.endswith(PART) else ""


def _holds(file: Path, other: Path) -> bool:
    """Whether a label file has all rows of another one that weaktr wrote."""
    try:
        return not _lacking(dict(_rows(file)), other)
    except (ValueError, OSError):
        return False


def _rows(file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Path and labels of each row of a label file of weaktr's form."""
    for row in read_label_file(file, []).rows:
        yield row.image.removeprefix("./"), row.labels


def _lacking(labels: Mapping[str, Sequence[str]], file: Path) -> list[str]:
    """The photographs of a file that weaktr wrote which `labels` lack, or with other classes."""
    return [
        name for name, own in _rows(file) if name not in labels or set(labels[name]) != set(own)
    ]


def require_source(folder: Path) -> None:
    """Raise `ValueError` where what the labels of an earlier start were read from is gone.

    Its label files are then the only place of these labels and must not be replaced by others.
    """
    files, changed = _recorded(folder)
    source = read_json_object(folder / RECORD).get("source") if files and not changed else None
    if not isinstance(source, str) or (folder / source).exists():
        return
    names = listed(sorted(file.name for file in files))
    raise ValueError(
        f"{folder}: {source}, of which {names} were made, is not there any more; put it back, or "
        f"say which labels count: --labels {shlex.quote(str(min(files)))}"
    )


def labels_since(folder: Path) -> str | None:
    """What to tell where labels have changed since ``weaktr init`` read them; None = they have not.

    Where they are there but cannot be read, that is told; where they are gone, its files count.

    Args:
        folder: of photographs. Where somebody has changed the files of its splits, these count.
    """
    files = own_files(folder)
    record = read_json_object(folder / RECORD) if files else {}
    if not files or {file.name for file in files} != set(record.get("files", ())):
        return None
    before, options = record.get("labels"), options_of(folder)
    labels, classes = (
        Path(str(options[name])) if name in options else None for name in ("labels", "classes")
    )
    names = listed(sorted(file.name for file in files))
    try:
        own = look_at(folder, labels, classes, files)
    except (ValueError, OSError) as error:
        source = record.get("source")
        if not isinstance(source, str) or not (folder / source).exists():
            return None
        why = one_line(str(error).partition("\n")[0])
        return (
            f"{folder}: labels may have changed since {names} were made of {source}: {why}; mend "
            f"that, then start weaktr init {shlex.quote(str(folder))} again"
        )
    if before is None or before == _digest_of_labels(own):
        return None
    return (
        f"{own.tags.path} is not what {names} were made of: to take it as it is now, start "
        f"weaktr init {shlex.quote(str(folder))} again"
    )


def _digest_of_labels(own: OwnPhotographs) -> str:
    return digest_of([*sorted(own.labels.items()), own.classes.names])


def options_of(folder: Path) -> dict[str, str | float]:
    """The options with which ``weaktr init`` was last called for a folder, by their names."""
    record = folder / RECORD
    if not is_sealed(record):
        return {}
    options = read_json_object(record).get("options", {})
    kept = options.items() if isinstance(options, dict) else ()
    kinds = {name: float if name == "hold_out" else str for name in OPTIONS}
    return {name: value for name, value in kept if type(value) is kinds.get(name)}


def splits_of(own: OwnPhotographs, held_out: Collection[str], folder: Path) -> Splits:
    """The label files of training and held-out photographs: the user's own, or new ones.

    Args:
        own: the photographs.
        held_out: those that are not trained on.
        folder: for new files; the photographs' own, or another one.

    Raises:
        ValueError: files of the user's have all names that new ones may have, or all photographs
            are held out.
    """
    train = {name: labels for name, labels in own.labels.items() if name not in held_out}
    if not train:
        raise ValueError(
            f"{own.tags.path}: expected photographs to train on, all of its {len(own.labels)} are "
            "in val.csv or val.json beside it too; move that away, or leave in it only those that "
            "are to be held out"
        )
    val = "val" if held_out else "train"
    if folder == own.root and own.is_ready and (own.held_out is not None or not held_out):
        return Splits("train", val, {}, folder)
    replaceable = own_files(folder)
    suffix = ".json" if any(re.search("[;|]", name) for name in own.classes.names) else ".csv"
    write = _as_json if suffix == ".json" else _as_csv
    for ending in ("", PART):
        names = {name + end for name in family(f"train{ending}") for end in SUFFIXES}
        taken = [folder / name for name in names if (folder / name).exists()]
        if set(taken) <= replaceable:
            break
    else:
        raise ValueError(
            f"{folder}: expected free names for the labels, {few(sorted(taken))} are there, and "
            "not as weaktr wrote them; move these away"
        )
    files = {f"train{ending}{suffix}": write(train)}
    if held_out:
        files[f"val{ending}{suffix}"] = write({name: own.labels[name] for name in held_out})
    return Splits(f"train{ending}", f"{val}{ending}", files, folder)


def write_start(
    own: OwnPhotographs,
    splits: Splits,
    recipe: Path,
    text: str,
    options: Mapping[str, str | float] | None = None,
) -> None:
    """Write the label files and the recipe; nothing where one of them may not be written.

    Args:
        own: the photographs.
        splits: their label files.
        recipe: to be written.
        text: its content, see `recipe_text`.
        options: of the command, for `options_of`.

    Raises:
        ValueError: there is a recipe that weaktr did not write, or somebody has changed it; or a
            label file of an earlier start would have to go that is the only place of its labels.
    """
    try:
        require_replaceable(recipe)
    except ValueError as error:
        advice = "or --out FILE writes another recipe, and the label files anew"
        raise ValueError(f"{error}; {advice}") from error
    former = own_files(splits.folder)
    outdated = former - _in_use(own, splits)
    _require_superfluous(outdated, own)
    if splits.files or former or options:
        digests = {name: {_digest(content)} for name, content in splits.files.items()}
        for (
            file
        ) in former:  # whenever this is interrupted, each is known as it was or as it will be
            digests.setdefault(file.name, set()).add(_digest(file.read_bytes()))
        record = {
            "files": {name: sorted(digests[name]) for name in sorted(digests)},
            "labels": _digest_of_labels(own),
            "source": _source(own, splits.folder),
            "options": dict(options or {}),
        }
        write_json(splits.folder / RECORD, record, seal=True)
    for name, content in splits.files.items():
        write_bytes(splits.folder / name, content)
    for file in outdated:
        file.unlink()
    write_bytes(recipe, sealed(text.encode()))


def class_numbers(recipe: Path) -> dict[str, int]:
    """The pixel values that classes have in masks, by a recipe; none where none can be read."""
    try:
        names = load_recipe(recipe).data.options.get("classes")
    except (ValueError, OSError) as error:  # it is replaced, or is not, whatever it says
        log.debug("the recipe of the last time: %s", error)
        names = None
    listed = names if isinstance(names, Sequence) else ()
    return {str(name): number for number, name in enumerate(listed, start=1)}


def renumbered(before: Mapping[str, int], now: Mapping[str, int]) -> str | None:
    """What to tell where classes have other pixel values than the last time; None = none has."""
    moved = [
        f"{name} {before[name]} -> {number}"
        for name, number in now.items()
        if before.get(name, number) != number
    ]
    if not moved:
        return None
    have = counted(len(moved), "class has", "classes have")
    return (
        f"{have} another pixel value in masks than the last time ({few(moved)}): masks made "
        "before keep the old ones; a classes.txt, one name a line with new ones last, keeps them"
    )


def _in_use(own: OwnPhotographs, splits: Splits) -> set[Path]:
    """The label files of both splits, and those from which they would be made again."""
    names = set(splits.files) or {own.tags.path.name}
    if not splits.files and own.held_out is not None:
        names |= {f"val{suffix}" for suffix in SUFFIXES}
    return {splits.folder / name for name in names}


def _require_superfluous(outdated: Collection[Path], own: OwnPhotographs) -> None:
    """Raise `ValueError` where a file that is to be deleted has labels that no other has."""
    for file in sorted(outdated):
        if lacking := _lacking(own.labels, file):
            raise ValueError(
                f"{file}: weaktr wrote it and does not need it any more, but it has labels that "
                f"{own.tags.path} has not, of {few(lacking)}; move it away, or delete it"
            )


def _source(own: OwnPhotographs, folder: Path) -> str:
    """Where the labels were read: a path from `folder`, or an absolute one."""
    path, base = own.tags.path.resolve(), folder.resolve()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_csv(labels: Mapping[str, Sequence[str]]) -> bytes:
    """A CSV of the form image,labels. No cell begins as a formula of a spreadsheet does."""
    rows = [
        (_no_formula(name, "./"), _no_formula(";".join(labels[name]), ";"))
        for name in sorted(labels)
    ]
    return csv_bytes([("image", "labels"), *rows])


def _no_formula(text: str, before: str) -> str:
    """A cell's text with `before`, which does not change its meaning, where it looks a formula."""
    return before + text if text[:1] in ("=", "+", "-", "@") else text


def _as_json(labels: Mapping[str, Sequence[str]]) -> bytes:
    content = {name: list(labels[name]) for name in sorted(labels)}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def recipe_text(own: OwnPhotographs, splits: Splits, choices: Choices) -> str:
    """A recipe for photographs, with what a user may want to change and a comment at each line.

    Its values are those of `BASE` but for what `choices` say.
    """
    name = re.sub(r"[^\w.-]+", "_", own.root.resolve().name).lstrip(".")[:100]
    shown = one_line(str(own.root))
    weights = "timm" if choices.weights is None else str(choices.weights.resolve())
    lines = [
        f"# {BLANK}",
        "# So weaktr init knows its own recipe: once you change anything, it keeps off.",
        f"# {len(own.labels)} photographs of {shown}",
        f"# Every setting: weaktr-train {BASE} --print",
        _line("base", BASE, "what is not said here is said there"),
        _line("name", name if PLAIN_WORD.fullmatch(name) else "photos", "results: runs/NAME"),
        "data:",
        _line("  source", "folder", "photographs in a folder, labels in a CSV or JSON"),
        _line("  root", str(own.root.resolve()), "the folder"),
        *_data_lines(own, splits, choices),
        *_setting_lines(load_recipe(BASE), weights, choices),
    ]
    return "\n".join(lines) + "\n"


def _data_lines(own: OwnPhotographs, splits: Splits, choices: Choices) -> list[str]:
    """The splits and the options of the source."""
    suffixes = {Path(name).stem: Path(name).suffix for name in splits.files}
    lines = [
        _line("  train_split", splits.train, "label file of the photographs that are trained on"),
        _line("  val_split", splits.val, "of those that get predictions"),
        "  options:",
    ]
    if splits.folder != own.root:
        place = splits.folder.resolve()
        paths = [str(place / (name + suffixes[name])) for name in (splits.train, splits.val)]
        lines += [_line("    labels_file", paths[0], "of the training photographs")]
    if choices.turned or choices.exif == "apply":
        turned = counted(choices.turned, "photograph", "photographs")
        told = f"EXIF turns {turned}; apply: as viewers show them, ignore: "
        lines += [_line("    exif", choices.exif, f"{told}as stored")]
    lines += ["    classes:               # the first is pixel value 1 of masks; 0 is background"]
    lines += [f"      - {_yaml(name)}" for name in own.classes.names]
    if splits.folder != own.root:
        lines += ["  val_options:", _line("    labels_file", paths[1], "of the others")]
    return lines


def _setting_lines(recipe: Recipe, weights: str, choices: Choices) -> list[str]:
    """The settings of the stages that a user may want to change."""
    tree = as_tree(recipe)
    patches, label, seg = tree["cam_model"]["patches"], tree["label"], tree["train_seg"]
    epochs = seg["epochs"] if choices.epochs is None else choices.epochs
    where = "of DINOv2-S: timm fetches them once, or a file"
    return [
        _line("device", tree["device"], "auto, cpu or cuda"),
        _line("seed", tree["seed"], "another number is another training"),
        "cam_model:",
        _line("  weights", weights, where),
        "  patches:",
        _line("    saliency_weight", patches["saliency_weight"],
              "less where objects reach the borders of photographs"),
        _line("    least_share", patches["least_share"],
              "of a photograph for each of its classes; smaller misses more, larger bloats"),
        _line("    least_background", patches["least_background"],
              "smaller where an object fills the photograph"),
        "label:",
        _line("  threshold", label["threshold"],
              "higher: less of each object; auto: chosen without masks"),
        "seg_model:",
        _line("  weights", weights, where),
        "train_seg:",
        _line("  epochs", epochs, "auto: by the number of photographs"),
        _line("  batch_size", seg["batch_size"], "auto: by the number of photographs"),
        _line("  recompute", seg["recompute"], "true where the memory is too small; slower"),
        "predict:",
        _line("  crf", tree["predict"]["crf"], "sharpens masks along edges; null: as predicted"),
    ]  # fmt: skip


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key + ': ' + _yaml(value):26} # {comment}"


def _yaml(value: Any) -> str:
    """A plain value in YAML: a word as it is, any other text in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]*", value) and value not in _WORDS:
        return value
    readable = isinstance(value, str) and value.isprintable()
    return json.dumps(value, ensure_ascii=not readable)


#: Words that YAML reads as something else than text.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
