"""A folder of results: from which inputs they come, and whether they may be continued.

FOLDER/inputs.json     fingerprint ("made_from") and settings of the inputs; written first
FOLDER/finished.json   the same fingerprint; written last

Trainings continue by `weaktr.training.state` in addition.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weaktr.files import read_json, write_json

INPUTS, FINISHED = "inputs.json", "finished.json"


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits of the JSON of `parts` (key order does not matter)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def begin(
    folder: Path, made_from: str, *, replace: bool = False, force: bool = False, **facts: Any
) -> None:
    """Prepare `folder` for results; those in it are kept if they come from the same inputs.

    Args:
        folder: created if missing.
        made_from: fingerprint of the inputs.
        replace: delete results of other inputs, instead of refusing to mix them with new ones.
        force: delete results of the same inputs too.
        facts: written beside the fingerprint, for the reader of the results.

    Raises:
        ValueError: the folder holds results of other inputs where `replace` is False; or files but
            no ``inputs.json``, so weaktr did not write them, where `replace` is True.
    """
    file = folder / INPUTS
    for rest in _unfinished(folder):  # of a process that was killed
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    if file.is_file():
        same = stored_fingerprint(file) == made_from
        if not same and not replace:
            raise ValueError(
                f"{folder}: holds results made from other inputs or with other settings; "
                "choose another --out"
            )
        if force or not same:
            removed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.removed")
            folder.rename(removed)  # at once: half a folder would look like something else
            shutil.rmtree(removed)
    elif replace and folder.exists():
        _refuse_files_of_others(folder, [p for p in folder.iterdir() if p.name[0] != "."])
    write_json(file, {"made_from": made_from, **facts})


def begin_masks(folder: Path, source: Path, settings: dict[str, Any]) -> None:
    """`begin` for masks that come from one checkpoint (or folder of CAMs) and settings.

    Raises:
        ValueError: as `begin`; or there are masks that weaktr did not write.
    """
    if not (folder / INPUTS).is_file():
        _refuse_files_of_others(folder, [p for p in (folder / "masks",) if p.exists()])
    made_from = fingerprint(str(source.resolve()), source.stat().st_size, settings)
    begin(folder, made_from, checkpoint=str(source), settings=settings)


def _unfinished(folder: Path) -> list[Path]:
    """What a process that was killed may have left of `folder`: half of a file, or of a removal."""
    removed = folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 32}.removed")
    return [*removed, *folder.glob(f".{'[0-9a-f]' * 32}.part")]


def _refuse_files_of_others(folder: Path, files: Sequence[Path]) -> None:
    if files:
        raise ValueError(
            f"{folder}: expected an empty folder or one that weaktr made, but it holds "
            f"{files[0].name} and no {INPUTS}; choose another --out, or move it away"
        )


def mark_finished(folder: Path, made_from: str) -> None:
    """Store that the results in `folder` are complete and come from inputs of this fingerprint."""
    write_json(folder / FINISHED, {"made_from": made_from})


def is_finished(folder: Path, made_from: str) -> bool:
    """Whether the results in `folder` are complete and come from exactly these inputs."""
    return stored_fingerprint(folder / FINISHED) == made_from


def stored_fingerprint(file: Path) -> str | None:
    """The fingerprint in an ``inputs.json`` or ``finished.json``; None where there is no file."""
    if not file.is_file():
        return None
    made_from: str | None = read_json(file).get("made_from")
    return made_from
