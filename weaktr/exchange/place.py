"""Folders of exports: a new result takes the place of the former one as a whole.

FOLDER/inputs.json     what was asked for; written first
FOLDER/finished.json   a digest of every file that weaktr wrote; written last
FOLDER/.replacing.json digests of the former files and of the new ones, while these take their place
FOLDER.old-1a2b3c4d    a former result in which somebody has put or changed files
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weaktr.contents import CONTENTS, Contents
from weaktr.files import files_below, read_json_object, write_json
from weaktr.outputs import (
    FINISHED,
    INPUTS,
    begin,
    claimed,
    fingerprint,
    finished_facts,
    mark_finished,
    read_inputs,
    refuse_files_of_others,
    remove,
    require_apart,
)
from weaktr.progress import log

REPLACING = ".replacing.json"


@contextmanager
def replaced(
    folder: Path,
    source: Path,
    images: Collection[Path],
    facts: Mapping[str, Any],
    archives: Collection[Path] = (),
) -> Iterator[Path]:
    """Have an empty folder whose files take the place of those in `folder` at the end.

    Where the body of the ``with`` statement raises, `folder` stays as it was. The former result is
    removed once the new one has its place; what a kill in between leaves counts as weaktr's own at
    the next start.

    Args:
        folder: of the export.
        source: the folder of masks that it is made from.
        images: folders in which photographs are looked for.
        facts: what was asked for; an export of something else is refused.
        archives: tars in which photographs are.

    Raises:
        ValueError: see `require_apart`, `claimed` and `begin`.
    """
    require_apart(folder, [source, *archives], images)
    if read_inputs(folder) is None:
        refuse_files_of_others(folder)
    known = {**facts, "masks_of": str(source.resolve())}
    made_from = fingerprint("export", known)
    with claimed(folder):
        begin(folder, made_from, **known)
        fresh = folder / f".{uuid.uuid4().hex}.part"
        fresh.mkdir()
        contents = Contents(folder / CONTENTS)
        try:
            yield fresh
            files = _digests(fresh, contents)
            there = _digests(folder, contents)
            is_own = _is_own(folder, there)
            note = {"before": there if is_own else {}, "files": files}
            write_json(folder / REPLACING, note)
        except BaseException:
            remove(fresh)
            raise
        former = _put_away(folder, is_own=is_own)
        for path in sorted(fresh.iterdir()):
            path.rename(folder / path.name)
        fresh.rmdir()
        mark_finished(folder, made_from, files=files)
        (folder / REPLACING).unlink()
        contents.follow(fresh, folder)
        contents.save()
        if former is not None and is_own:
            remove(former)


def _is_own(folder: Path, there: Mapping[str, str]) -> bool:
    """Whether weaktr wrote all that is there: as one export, or as one that was stopped while its
    files took the place of those before."""
    stored = finished_facts(folder)
    try:
        note = read_json_object(folder / REPLACING)
        either = [dict(note["before"]), dict(note["files"])]
    except (OSError, ValueError, KeyError, TypeError):  # there is none
        return not there or (stored is not None and stored.get("files") == there)
    return all(digest in (files.get(path) for files in either) for path, digest in there.items())


def _put_away(folder: Path, *, is_own: bool) -> Path | None:
    """Move the former result out of the way; where it is then, None where there was none.

    One in which somebody has put or changed files is kept beside the folder.
    """
    former = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    former = [path for path in former if path.name not in (INPUTS, FINISHED)]
    (folder / FINISHED).unlink(missing_ok=True)
    if not former:
        return None
    place = folder / f".{uuid.uuid4().hex}.removed"
    if not is_own:
        place = folder.with_name(f"{folder.name}.old-{uuid.uuid4().hex[:8]}")
        log.warning("%s: is not as weaktr wrote it; it is kept as %s", folder, place)
    place.mkdir()
    for path in former:
        path.rename(place / path.name)
    return place


def _digests(folder: Path, contents: Contents) -> dict[str, str]:
    """SHA-256 of each file of a result, by its path; of a link, where it leads."""
    return {
        os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace"): (
            f"link to {os.readlink(path)}" if path.is_symlink() else contents.digest(path)
        )
        for path in sorted(files_below(folder))
        if path.relative_to(folder).as_posix() not in (INPUTS, FINISHED)
    }
