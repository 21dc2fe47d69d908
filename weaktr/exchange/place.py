"""Folders of exports: a new result takes the place of the former one as a whole.

FOLDER/inputs.json     what was asked for; written first
FOLDER/finished.json   a digest of every file that weaktr wrote; written last
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
from weaktr.files import files_below
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


@contextmanager
def replaced(
    folder: Path,
    source: Path,
    images: Collection[Path],
    facts: Mapping[str, Any],
    archives: Collection[Path] = (),
) -> Iterator[Path]:
    """Have an empty folder whose files take the place of those in `folder` at the end.

    Where the body of the ``with`` statement raises, `folder` stays as it was.

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
        try:
            yield fresh
        except BaseException:
            remove(fresh)
            raise
        contents = Contents(folder / CONTENTS)
        _clear(folder, contents)
        for path in sorted(fresh.iterdir()):
            path.rename(folder / path.name)
        fresh.rmdir()
        mark_finished(folder, made_from, files=_digests(folder, contents))
        contents.save()


def _clear(folder: Path, contents: Contents) -> None:
    """Remove the former result; one in which somebody has put or changed files is kept beside."""
    former = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    former = [path for path in former if path.name not in (INPUTS, FINISHED)]
    stored = finished_facts(folder)
    if former and (stored is None or stored.get("files") != _digests(folder, contents)):
        place = folder.with_name(f"{folder.name}.old-{uuid.uuid4().hex[:8]}")
        log.warning("%s: is not as weaktr wrote it; it is kept as %s", folder, place)
    else:
        place = folder / f".{uuid.uuid4().hex}.removed"
    (folder / FINISHED).unlink(missing_ok=True)
    place.mkdir()
    for path in former:
        path.rename(place / path.name)
    if place.parent == folder:
        remove(place)
    elif not former:
        place.rmdir()


def _digests(folder: Path, contents: Contents) -> dict[str, str]:
    """SHA-256 of each file of a result, by its path; of a link, where it leads."""
    return {
        os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace"): (
            f"link to {os.readlink(path)}" if path.is_symlink() else contents.digest(path)
        )
        for path in sorted(files_below(folder))
        if path.relative_to(folder).as_posix() not in (INPUTS, FINISHED)
    }
