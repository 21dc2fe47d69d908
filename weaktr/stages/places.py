"""Where a stage's results are made, and how they take the place of earlier ones.

RUN/STAGE                  its results, or its first attempt at them
RUN/STAGE.new-1a2b3c4d     an attempt with other inputs (their fingerprint), until it is whole
RUN/STAGE.old-1a2b3c4d     earlier results in which somebody has put or changed files
"""

from __future__ import annotations

import glob
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weaktr import outputs, tars
from weaktr.config import Recipe
from weaktr.contents import CONTENTS, Contents
from weaktr.data.mask_index import JOURNAL
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.data.stored_maps import is_damaged
from weaktr.files import UNFINISHED, require_replaceable, write_bytes
from weaktr.outputs import (
    FEATURES,
    INPUTS,
    METRICS,
    PICTURES,
    RECIPE,
    REPORT,
    REPORT_FILES,
    claimed,
    clear_unfinished,
    read_inputs,
    refuse_files_of_others,
)
from weaktr.recipes import dump_recipe, load_recipe
from weaktr.refine import choose_refiners, paths_of
from weaktr.seals import BLANK, is_sealed, sealed
from weaktr.stages.evaluate import TABLE
from weaktr.stages.inputs import Inputs, content_of
from weaktr.stages.run import MODEL, Run
from weaktr.training.state import STATE

log = logging.getLogger("weaktr")

#: What a run writes into its folder beside the folders of its stages.
OF_FILES = (RECIPE, METRICS, REPORT)
OF_A_RUN = (*OF_FILES, PICTURES, FEATURES, REPORT_FILES)
#: What stages write into their folders beside masks and charts.
OF_A_STAGE = (
    INPUTS, outputs.FINISHED, "index.jsonl", "state.pt", "model.safetensors", "model.json",
    "metrics.jsonl", "metrics.json", TABLE, "contact_sheet.png", CONTENTS, outputs.LOCK,
    "pseudo_label_classes.png", "val_classes.png", "not_held_out_classes.png", "threshold.json",
    "threshold.png",
)  # fmt: skip
#: Those of them that change, or are looked at apart.
OF_WORK = (INPUTS, outputs.FINISHED, "index.jsonl", "state.pt", CONTENTS, outputs.LOCK)

#: Files that systems put everywhere.
OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")


def in_the_way(run: Run) -> list[str]:
    """Why the folder of a run cannot be used: files of others, or links, where results go."""
    advice = "move it away, or choose another --out"
    above = next(path for path in (run.folder, *run.folder.parents) if path.exists())
    if not above.is_dir():
        return [f"--out {run.folder}: expected a folder, {above} is a file; {advice}"]
    if not os.access(above, os.W_OK | os.X_OK):
        return [f"--out {run.folder}: nothing may be written in {above}; choose another --out"]
    own = [run.folder / name for name in (*OF_A_RUN, *run.recipe.stages)]
    faults = [f"{path}: is a link; {advice}" for path in own if path.is_symlink()]
    faults += [f"{p}: is a folder; {advice}" for p in own[: len(OF_FILES)] if p.is_dir()]
    is_marked = (run.folder / outputs.LOCK).exists()
    if not faults and not is_marked and not any((path / INPUTS).is_file() for path in own):
        faults += [
            f"{path}: is there already, and weaktr did not write it; {advice}"
            for path in own
            if path.is_file() or (path.is_dir() and any(path.iterdir()))
        ]
    if not faults and (others := other_data(run)):
        faults.append(f"{others}; {advice}")
    files: set[Path] = set()
    for split in ("train", "score", "predicted"):
        with suppress(ValueError, OSError):  # what is wrong with a split is told where it is used
            for sample in getattr(run, split) or ():
                files |= {path for path in (sample.image, sample.mask) if path is not None}
    archives, images = tars.places_of(files)
    for stage in {"label", "predict"} & {*run.recipe.stages}:
        with suppress(ValueError, OSError):  # likewise
            images.update(paths_of(choose_refiners(getattr(run.recipe, stage))))
    try:
        outputs.require_apart(run.folder, archives, images, own=own)
    except ValueError as error:
        faults.append(str(error))
    return faults


def other_data(run: Run) -> str:
    """What to tell where a run's folder holds finished results of other data than the recipe's.

    Data that were moved, or to which photographs were added, have photographs that the run knows.
    """
    with suppress(ValueError, OSError):  # no results, or damaged; or the check tells of the data
        before, now = load_recipe(run.folder / RECIPE).data, run.recipe.data
        is_same = os.path.realpath(before.root) == os.path.realpath(now.root)
        if is_same and before.source == now.source:
            return ""
        known = Contents(run.folder / CONTENTS).known()
        if not known or not any(outputs.finished_facts(run.of(name)) for name in Recipe.stages):
            return ""
        images = [sample.image for sample in run.train]
        if images and not any(content_of(image, run) in known for image in images):
            return (
                f"--out {run.folder}: holds results of other data, {before.source} {before.root}, "
                f"that know no photograph of {now.source} {now.root}"
            )
    return ""


@contextmanager
def claimed_run(run: Run) -> Iterator[None]:
    """Have the folder of a run to oneself.

    Raises:
        ValueError: see `in_the_way`; or another process works in it.
    """
    if faults := in_the_way(run):
        raise ValueError("\n".join(faults))
    with claimed(run.folder):
        clear_unfinished(run.folder, at_depth=False)
        keep_changed(run)
        yield


def write_recipe(run: Run) -> None:
    """Write the recipe into the run's folder, unless it is there already, in whatever words."""
    file = run.folder / RECIPE
    with suppress(ValueError):  # damaged
        if file.is_file() and load_recipe(file) == run.recipe:
            return
    if file.is_file() and not is_sealed(file):
        outputs.keep(file)
    write_bytes(file, sealed(f"# {BLANK}\n{dump_recipe(run.recipe)}".encode()))


def write_table(run: Run, folder: Path) -> None:
    """Write the scores of a finished evaluation, if `folder` holds one, into the run's folder."""
    table = folder / TABLE
    file = run.folder / METRICS
    if table.is_file() and not (file.is_file() and file.read_bytes() == table.read_bytes()):
        write_bytes(file, table.read_bytes())


def keep_changed(run: Run) -> None:
    """Keep under another name the scores in the run's folder that weaktr did not write.

    Older versions did not seal them; theirs are those of the evaluation.
    """
    file, table = run.folder / METRICS, run.of("evaluate") / TABLE
    if not file.is_file() or is_sealed(file):
        return
    if not table.is_file() or file.read_bytes() != table.read_bytes():
        outputs.keep(file)


def settle(folder: Path, inputs: Inputs) -> None:
    """Let an attempt at these results take its place that was whole before the process ended."""
    attempt = _attempt(folder, inputs)
    if inputs.fit(outputs.finished_facts(attempt)):
        put(attempt, folder)


def begin(folder: Path, inputs: Inputs, *, force: bool = False) -> Path:
    """Prepare the place where a stage's results are made.

    Args:
        folder: of the stage.
        inputs: of its results; an attempt with the same ones goes on.
        force: begin anew, even if there are results of these inputs.

    Returns:
        `folder`, or a folder beside it where it holds other results.

    Raises:
        ValueError: a folder holds files of others, or something in it is a link.
    """
    stored, place = read_inputs(folder), folder
    attempt = _attempt(folder, inputs)
    if stored is None:
        refuse_files_of_others(folder)
    elif force or not inputs.fit(stored):
        place = attempt
    if force and attempt.exists() and (gone := _out_of_the_way(attempt, None)) is not None:
        outputs.remove(gone)
    if place == attempt and not force:
        log.info(
            "%s: holds results of other inputs (%s); they stay until the new ones are whole",
            folder, outputs.differences(stored or {}, inputs.facts),
        )  # fmt: skip
    if inputs.fit(read_inputs(place)):
        outputs.tidy(place)
        (place / outputs.FINISHED).unlink(missing_ok=True)
    else:
        outputs.begin(place, inputs.made_from, **inputs.facts)
    return place


def digests_of(folder: Path, contents: Contents) -> dict[str, str]:
    """Name -> SHA-256 of the files of a stage that stay as they are once it is finished."""
    files = (folder / name for name in OF_A_STAGE if name not in OF_WORK)
    return {file.name: contents.digest(file) for file in files if file.is_file()}


def put(place: Path, folder: Path, contents: Contents | None = None) -> None:
    """Let whole results take the place of earlier ones, which are removed.

    Earlier results in which somebody has put or changed files are kept under another name.
    """
    if place == folder:
        return
    removed = []
    if folder.exists():
        removed.append(_out_of_the_way(folder, contents))
    place.rename(folder)
    for attempt in folder.parent.glob(f"{glob.escape(folder.name)}.new-*"):
        if is_attempt(attempt):
            removed.append(_out_of_the_way(attempt, contents))
    for path in removed:
        if path is not None:
            outputs.remove(path)


def is_attempt(folder: Path) -> bool:
    """Whether a folder beside that of a stage is one that `begin` made."""
    try:
        stored = None if folder.is_symlink() else read_inputs(folder)
    except ValueError:  # damaged
        return False
    return stored is not None and folder.name.endswith(f".new-{stored['made_from'][:8]}")


def _attempt(folder: Path, inputs: Inputs) -> Path:
    """Where results of these inputs are attempted: one that is there already, or a new folder."""
    names = (f"{folder.name}.new-{made_from[:8]}" for made_from in inputs.fingerprints)
    places = [folder.with_name(name) for name in names]
    return next((place for place in places if place.exists()), places[0])


def _out_of_the_way(folder: Path, contents: Contents | None) -> Path | None:
    """Rename earlier results; returns where they wait for removal, None where they are kept."""
    stranger = next(_files_of_others(folder, contents), None)
    if stranger is None:
        removed = folder.with_name(f".{uuid.uuid4().hex}.removed")
        folder.rename(removed)
        return removed
    kept = folder.with_name(f"{folder.name.partition('.')[0]}.old-{uuid.uuid4().hex[:8]}")
    folder.rename(kept)
    log.warning(
        "%s: the earlier results are kept, for %s is not as weaktr wrote it",
        kept, stranger.relative_to(folder),
    )  # fmt: skip
    return None


def _files_of_others(folder: Path, contents: Contents | None) -> Iterator[Path]:
    """Files in the folder of a stage that weaktr did not write, or that were changed since."""
    for path in sorted(folder.rglob("*")):
        is_ours = _is_ours(path.relative_to(folder)) or _is_of_the_index(path)
        is_strange = path.is_file() and not is_ours
        is_soft = path.is_file() and path.suffix == ".npz"
        is_changed = is_soft and not (is_sealed(path) or is_damaged(path))
        if path.is_symlink() or is_strange or is_changed:
            yield path
    finished, model = outputs.finished_facts(folder), folder / MODEL
    if finished is None:
        if model.is_file() and not (folder / STATE).is_file():  # a training writes its model last
            yield model
    else:
        now = digests_of(folder, contents or Contents())
        for name, digest in finished.get("files", {}).items():
            if now.get(name, digest) != digest:
                yield folder / name
    for place in (folder, before_refinement(folder)):
        try:
            masks = MaskFolder(place, verify=True, contents=contents)
        except ValueError:  # a damaged index
            yield place / "index.jsonl"
            continue
        yield from (masks.path(name) for name in sorted(masks.edited))
        yield from masks.others()


def _is_of_the_index(path: Path) -> bool:
    """Whether ``weaktr index`` wrote a file."""
    if path.suffix not in (".parquet", ".json"):
        return False
    from weaktr.shards.index import INDEX, MARK, STATS  # and with it pyarrow

    if path.name not in (INDEX, STATS):
        return False
    try:
        require_replaceable(path, MARK if path.name == INDEX else None)
    except ValueError:
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether weaktr writes a path in a stage's folder (masks, soft labels are looked at apart)."""
    top, *rest = path.parts
    if path.name in OF_SYSTEMS or any(UNFINISHED.fullmatch(part) for part in path.parts):
        return True
    if top in ("before_refinement", "before_crf") and rest:
        top, *rest = rest
    if JOURNAL.fullmatch(top):
        return not rest
    if top == "tensorboard":
        return path.name.startswith("events.out.tfevents")
    if top == "soft" and rest:
        return path.suffix == ".npz"
    return (top == "masks" and path.suffix == ".png") if rest else top in OF_A_STAGE
