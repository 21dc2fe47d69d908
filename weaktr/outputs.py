"""A folder of results: whose it is, from which inputs its results come, what may happen to it.

FOLDER/.weaktr-lock    held by the process that works in the folder
FOLDER/inputs.json     the inputs by name, and their fingerprint ("made_from"); written first
FOLDER/finished.json   the same fingerprint; written last

A folder with files and without inputs.json is somebody else's: nothing in it is touched.

Trainings continue by `weaktr.training.state` in addition.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from weaktr.contents import CONTENTS, Contents
from weaktr.files import (
    UNFINISHED,
    clear_abandoned,
    is_clutter,
    read_json,
    write_json,
)
from weaktr.messages import few, one_line

log = logging.getLogger("weaktr")

#: What a run writes into its own folder, beside those of its stages.
RECIPE, METRICS, PICTURES = "recipe.yaml", "metrics.json", "pictures"
FEATURES, REPORT, REPORT_FILES = "features", "report.html", "report_files"
INPUTS, FINISHED, LOCK = "inputs.json", "finished.json", ".weaktr-lock"
#: Facts in INPUTS on which no result depends.
NOTES = ("source", "about", "layout")
#: The files of a claim without results.
OF_A_CLAIM = {INPUTS, LOCK, CONTENTS}
#: Differences between inputs that a message lists.
SHOWN = 3
#: Seconds that a lock is waited for: loading processes outlive a killed training by five.
PATIENCE = 6


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits of the JSON of `parts` (key order does not matter)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder of results to oneself; it is created if missing.

    The lock ends with the process, however that ends. A folder that was missing or empty, and into
    which no results came, is left as it was.

    Raises:
        ValueError: another process works in it, or it is no folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    was_empty = bool(missing) or (folder.is_dir() and not os.listdir(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        kind = "a link to nothing" if Path(error.filename).is_symlink() else "a file"
        raise ValueError(f"--out {folder}: expected a folder, {error.filename} is {kind}") from None
    own = folder / LOCK
    if own.is_symlink() or (own.exists() and not own.is_file()):
        raise ValueError(f"{own}: expected a file, got a link, folder or pipe; move it away")
    lock = FileLock(folder / LOCK, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: another process works in it; wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        if was_empty and set(os.listdir(folder)) <= OF_A_CLAIM:
            _remove_claim(folder, missing)  # while nobody else has the lock
        lock.release()


def _remove_claim(folder: Path, missing: Sequence[Path]) -> None:
    """Remove what a claim alone leaves in a folder, and those of the folders that it created."""
    with suppress(OSError):  # somebody else has put something there meanwhile
        for name in os.listdir(folder):
            (folder / name).unlink()
        for path in missing:
            path.rmdir()


@contextmanager
def claimed_for_masks(
    folder: Path,
    source: Path,
    settings: Mapping[str, Any],
    inputs: Collection[Path],
    images: Collection[Path],
    about: Mapping[str, Any],
) -> Iterator[None]:
    """Have a folder to oneself for masks of one model (or of CAMs in files) and settings.

    The photographs and their labels are not part of its identity, each mask's entry has its own.

    Args:
        folder: see `claimed`.
        source: the checkpoint, or the folder of CAMs.
        settings: that the masks depend on.
        inputs, images: see `require_apart`.
        about: what else readers of the masks want to know (`weaktr.jobs.masked`); of no
            influence on whether masks are made again.

    Raises:
        ValueError: as `require_apart`, `claimed` and `begin`.
    """
    require_apart(folder, [source, *inputs], images)
    if read_inputs(folder) is None:
        refuse_files_of_others(folder)  # before anything is written there
    weights = {} if source.is_dir() else {"weights": Contents().digest(source)}
    facts = {**weights, "settings": dict(settings)}
    with claimed(folder):
        begin(folder, fingerprint("masks", facts), **facts, source=str(source), about=dict(about))
        yield


def tidy(folder: Path) -> None:
    """Refuse links in a folder of results; clear what killed processes left half-written in it.

    Raises:
        ValueError: something in it is a link.
    """
    refuse_links(folder)
    clear_unfinished(folder)


def refuse_links(folder: Path) -> None:
    """Raise `ValueError` where something in a folder of results is a link."""
    for place in (folder, folder / "before_refinement", folder / "before_crf"):
        for entry in os.scandir(place) if place.is_dir() else ():
            if entry.is_symlink():
                raise ValueError(
                    f"{entry.path}: is a link; expected files and folders that weaktr made: "
                    "move it away, or choose another --out"
                )


def clear_unfinished(folder: Path, *, at_depth: bool = True) -> None:
    """Remove what killed processes left half-written, or half-removed, in a folder of results."""
    for place, folders, files in os.walk(folder):
        for name in filter(UNFINISHED.fullmatch, files):
            (Path(place) / name).unlink(missing_ok=True)
        for name in filter(UNFINISHED.fullmatch, folders):
            remove(Path(place) / name)
        if not at_depth:
            return


def require_apart(
    folder: Path,
    inputs: Collection[Path],
    images: Collection[Path],
    own: Collection[Path] | None = None,
    option: str = "--out",
) -> None:
    """Refuse a folder of results that would mix them with what they are made from.

    Args:
        folder: of the results.
        inputs: files and folders that are read.
        images: folders in which photographs are looked for.
        own: files and folders of the results; None = `folder`.
        option: by which the folder is given.

    Raises:
        ValueError: an input lies in one of `own`, or `folder` in one of `images` or in a folder of
            other results.
    """
    place = folder.resolve()
    places = [path.resolve() for path in own or [folder]]
    require_outside_results(folder, option, inside=own is not None)
    for path in images:
        if place.is_relative_to(path.resolve()):
            raise ValueError(
                f"{option} {folder}: lies in the folder of the photographs or masks, {path}, where "
                "its masks would be taken for these; choose a folder beside it"
            )
    for path in (*inputs, *images):
        if any(path.resolve().is_relative_to(one) for one in places):
            raise ValueError(
                f"{option} {folder}: holds {path}, from which the results are to be made; "
                f"choose another {option}"
            )


def require_outside_results(path: Path, option: str, *, inside: bool = False) -> None:
    """Refuse a file or folder of results that lies in a folder of other results.

    Args:
        path: named by `option`.
        option: for the message.
        inside: whether it may not be such a folder itself either.

    Raises:
        ValueError: it does.
    """
    place = path.resolve()
    for above in (place, *place.parents) if inside else place.parents:
        if has_inputs(above):
            raise ValueError(
                f"{option} {path}: lies in {above}, a folder of other results; choose another place"
            )


def require_free_place(file: Path, option: str) -> None:
    """Refuse a single result where a run, or a folder of results, keeps its own.

    Args:
        file: to be written.
        option: that names it, or its folder.

    Raises:
        ValueError: it lies in a folder of results, in a run's pictures, or is called as a file of
            the run in whose folder it lies.
    """
    require_outside_results(file, option)
    folder = file.parent
    is_own = file.name in (RECIPE, METRICS, REPORT) and (folder / LOCK).exists()
    if is_own or (folder.name in (PICTURES, REPORT_FILES) and (folder.parent / LOCK).exists()):
        raise ValueError(f"{option} {file}: a run keeps its own there; choose another place")


def begin(folder: Path, made_from: str, **facts: Any) -> None:
    """Prepare `folder` for results; those in it are kept if they come from the same inputs.

    Args:
        folder: created if missing.
        made_from: fingerprint of the inputs.
        facts: the inputs by name, written beside the fingerprint: plain values, or trees of them;
            `NOTES` among them are kept up to date.

    Raises:
        ValueError: the folder holds results of other inputs (says what differs; inputs alone, of
            a start that failed, are replaced); or files but no ``inputs.json``, so weaktr did not
            write them.
    """
    tidy(folder)
    stored = read_inputs(folder)
    if stored is None:
        refuse_files_of_others(folder)
    elif stored["made_from"] == made_from:
        facts = stored | {name: facts[name] for name in NOTES if name in facts}
        if facts == stored:
            return
    elif _visible(folder) != [INPUTS]:
        raise ValueError(
            f"{folder}: holds results of {others_in_words(stored, facts)}; choose another --out"
        )
    write_json(folder / INPUTS, facts | {"made_from": made_from})


def begin_shared(folder: Path, made_from: str, **facts: Any) -> None:
    """As `begin`, of a folder in which several processes may work at once.

    Args:
        folder, made_from, facts: see `begin`.

    Raises:
        ValueError: see `begin`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--out {folder}: expected a folder, {error.filename} is a file") from None
    stored = read_inputs(folder)
    if stored is None:
        others = [name for name in _visible(folder) if name != INPUTS]
        if others and read_inputs(folder) is None:
            refuse_files_of_others(folder)
        write_json(folder / INPUTS, facts | {"made_from": made_from}, is_new=True)
        stored = read_inputs(folder)
        assert stored is not None  # somebody has written it
    if stored["made_from"] != made_from:
        raise ValueError(
            f"{folder}: holds results of {others_in_words(stored, facts)}; choose another --out"
        )
    refuse_links(folder)
    clear_abandoned(folder)
    now = stored | {name: facts[name] for name in NOTES if name in facts}
    if now != stored:
        write_json(folder / INPUTS, now)


def read_inputs(folder: Path) -> dict[str, Any] | None:
    """The ``inputs.json`` of a folder; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    return _stored(folder / INPUTS)


def has_inputs(folder: Path) -> bool:
    """Whether a folder holds results: an ``inputs.json`` that weaktr wrote, no other of the name.

    What cannot be read, or is no JSON, may have been one.
    """
    try:
        if not (folder / INPUTS).exists():
            return False
        content = read_json(folder / INPUTS)
    except (OSError, ValueError):
        return True
    return isinstance(content, dict) and isinstance(content.get("made_from"), str)


def others_in_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Whose the results in a folder are: of another checkpoint or command, else what differs."""
    lines = []
    commands = [command_of(facts) for facts in (before, now)]
    if None not in commands and commands[0] != commands[1]:
        lines.append(f"another command (weaktr {commands[0]} there, weaktr {commands[1]} now)")
    elif commands[1] is None and commands[0] is not None:
        return f"another command (weaktr {commands[0]})"
    weights = [facts.get("weights") for facts in (before, now)]
    files = [facts.get("source") for facts in (before, now)]
    if None not in (*weights, *files) and weights[0] != weights[1]:
        places = f"{files[0]} there, {files[1]} now"
        told = places if files[0] != files[1] else f"{files[0]} has changed since"
        lines.append(f"another checkpoint ({told})")
    if not lines:
        return f"other inputs or settings ({differences(before, now)})"
    settings = [{"settings": facts.get("settings")} for facts in (before, now)]
    is_same = settings[0] == settings[1]
    also = "" if is_same else f" with other settings ({differences(*settings)})"
    return one_line(" and ".join(lines)) + also


def command_of(facts: Mapping[str, Any]) -> str | None:
    """The command that made, or is to make, masks; None = it is not noted."""
    about = facts.get("about")
    return about.get("command") if isinstance(about, Mapping) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the inputs of a folder and those of now, `SHOWN` of it."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    if not old.keys() & new.keys():
        return "noted by an older version of weaktr"
    lines = []
    for name in sorted(old.keys() | new.keys()):
        values = old.get(name, "nothing"), new.get(name, "nothing")
        if values[0] != values[1]:
            is_digest = all(isinstance(v, str) and len(v) in (32, 64) for v in values)
            both = f"{_short(values[0])} there, {_short(values[1])} now"
            lines.append(f"{name}: other content" if is_digest else f"{name}: {both}")
    return few(lines, SHOWN, between="; ") or "another version of weaktr"


def mark_finished(folder: Path, made_from: str, **facts: Any) -> None:
    """Store that the results in `folder` are complete and come from inputs of this fingerprint."""
    write_json(folder / FINISHED, {"made_from": made_from, **facts})


def keep(file: Path) -> None:
    """Rename a file that somebody has changed, so that another one can be written."""
    kept = file.with_name(f"{file.stem}.old-{uuid.uuid4().hex[:8]}{file.suffix}")
    file.rename(kept)
    log.warning("%s: is not as weaktr wrote it; it is kept as %s", file, kept.name)


def remove(folder: Path) -> None:
    """Remove a folder of earlier results; where that is not allowed, the log says so."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s: earlier results, not needed any more, stay: %s", folder, error.strerror)


def finished_facts(folder: Path) -> dict[str, Any] | None:
    """What `mark_finished` stored in a folder; None where its results are not complete.

    Raises:
        ValueError: the file is damaged.
    """
    return _stored(folder / FINISHED)


def _stored(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    advice = "move the folder away to begin again"
    try:
        content = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if not isinstance(content, dict) or not isinstance(content.get("made_from"), str):
        raise ValueError(f"{file}: damaged: expected a JSON object with made_from; {advice}")
    return content


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in a tree of inputs, with their names."""
    for key, value in tree.items():
        name = f"{above}{key}"
        if name in NOTES:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif name != "made_from":
            yield name, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _visible(folder: Path) -> list[str]:
    """The names in a folder, less hidden ones; none of a folder that is missing."""
    entries = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in entries if not is_clutter(name))


def refuse_files_of_others(folder: Path) -> None:
    """Raise ValueError for files, but hidden ones, in a folder that weaktr did not mark."""
    if found := _visible(folder):
        raise ValueError(
            f"{folder}: expected an empty folder or one that weaktr made, but it holds "
            f"{found[0]} and no {INPUTS}; choose another --out, or move it away"
        )
