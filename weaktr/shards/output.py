"""The files of a shard: begun, gone on with by whoever comes next, and whole in the end.

What a process makes of a shard goes into files of its own, with a journal:

    OUT/unfinished/SHARD/WRITER.jsonl        a line for each photograph, in their order, and
                                             before each loose mask one with its digest
    OUT/unfinished/SHARD/WRITER.masks.tar    a tar that grows; loose PNGs are at their places

Nobody writes into the files of another: who goes on where another has stopped copies what its
journal lists. So two processes at one shard do no harm, whether they see each other's locks or not.
At the end the files get their names, the table of rows is written, and the record last: a shard
is whole when its record is there and the files have the sizes that it says.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import socket
import tarfile
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from weaktr.contents import Contents
from weaktr.data.shard_tables import named_text
from weaktr.data.stored_maps import is_damaged
from weaktr.files import flush, read_json, read_json_object, write_json
from weaktr.outputs import keep
from weaktr.seals import is_sealed
from weaktr.shards.records import FORMAT, record_file, table_file
from weaktr.shards.rows import Row, read_table, rows_of, table_of, turned_in, write_table
from weaktr.shards.statistics import statistics_of
from weaktr.tars import members_of

#: The folder of what is begun, and the kind of file that every photograph has.
UNFINISHED = "unfinished"
MASKS = "masks"
#: How often a folder is made, or a file begun in it, that others remove.
ATTEMPTS = 5
Form = Literal["tar", "png"]
#: Files of a photograph: kind -> content.
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Layout:
    """Where the results of shards are.

    Args:
        out: the folder of results.
        form: "tar" = an archive a shard and kind, "png" = loose files.
        kinds: what there is of a photograph: kind -> its folder and the suffix of its files.
        nested: loose files lie in a folder for each shard, since names are unique in shards alone.
    """

    out: Path
    form: Form
    kinds: Mapping[str, tuple[str, str]]
    nested: bool = False

    def record(self, shard: str) -> Path:
        """The statistics of a shard, with which it is whole."""
        return record_file(self.out, shard)

    def table(self, shard: str) -> Path:
        """The rows of a shard."""
        return table_file(self.out, shard)

    def unfinished(self, shard: str) -> Path:
        """What processes have begun of a shard."""
        return self.out / UNFINISHED / shard

    def archive(self, kind: str, shard: str) -> Path:
        """The tar of a kind."""
        return self.out / self.kinds[kind][0] / f"{shard}.tar"

    def folder(self, kind: str, shard: str) -> Path:
        """The folder of loose files of a kind."""
        own = self.out / self.kinds[kind][0]
        return own / shard if self.nested else own

    def file(self, kind: str, shard: str, name: str) -> Path:
        """A loose file."""
        return self.folder(kind, shard) / f"{name}{self.kinds[kind][1]}"


@dataclass(frozen=True)
class Piece:
    """Where the content of a file is: in a tar, which may not be whole, or all of a loose file.

    Args:
        path: of the tar, or the loose file.
        offset, size: in the tar; None = all.
        digest: SHA-256; None = not known.
        moved: where the tar is once it is whole.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    digest: str | None = None
    moved: Path | None = None

    def read(self) -> bytes | None:
        """The content; None where it is not there as it was written, or was cut off."""
        content = self._read(self.path)
        return self._read(self.moved) if content is None and self.moved is not None else content

    def _read(self, path: Path) -> bytes | None:
        try:
            if self.digest is None and self.size is None and is_damaged(path):
                return None
            with open(path, "rb") as file:
                file.seek(self.offset)
                content = file.read() if self.size is None else file.read(self.size)
        except OSError:
            return None
        if self.size is not None and len(content) < self.size:
            return None
        if self.digest is not None and hashlib.sha256(content).hexdigest() != self.digest:
            return None
        return content


@dataclass
class Earlier:
    """What is there of a shard: of each photograph the row, and where its files are.

    Of those that failed only the ones whose masks somebody has changed, which were made before.
    `begun` has the digests of the loose masks that were written, or were to be, since the rows.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    pieces: dict[str, dict[str, Piece]] = field(default_factory=dict)
    begun: dict[str, set[str]] = field(default_factory=dict)

    def has_made(self, name: str, digest: str) -> bool:
        """Whether a loose mask, which has a seal, was made for the photograph at whose place it is.

        Of a photograph without a row it was: an older version noted nothing before.
        """
        row = self.rows.get(name)
        if row is None or digest in self.begun.get(name, ()):
            return True
        return row.status == "labelled" and digest == row.mask_digest

    def files_of(self, row: Row, kinds: Sequence[str]) -> dict[str, bytes] | None:
        """The files of a row as they were written; None where one is not."""
        if row.mask_digest is None:
            return {}
        files = {}
        for kind in kinds:
            piece = self.pieces.get(row.name, {}).get(kind)
            content = None if piece is None else piece.read()
            if content is None:
                return None
            files[kind] = content
        if hashlib.sha256(files[MASKS]).hexdigest() != row.mask_digest:
            return None
        return files


def read_earlier(layout: Layout, shard: str, made_from: str) -> Earlier:
    """What earlier processes have left of a shard, whole or begun, from the same settings.

    What is damaged counts as not there.
    """
    earlier = Earlier()
    _add_whole(earlier, layout, shard, made_from)
    folder = layout.unfinished(shard)
    for journal in sorted(folder.glob("*.jsonl")):
        _add_journal(earlier, layout, shard, made_from, journal)
    return earlier


def _add_whole(earlier: Earlier, layout: Layout, shard: str, made_from: str) -> None:
    record = read_record(layout, shard)
    if record is None or record.get("made_from") != made_from:
        return
    try:
        rows = [row for row in rows_of(read_table(layout.table(shard))) if _was_made(row)]
        if layout.form == "tar":
            for kind, (_, suffix) in layout.kinds.items():
                archive = layout.archive(kind, shard)
                for member in members_of(archive):
                    name = member.name.removesuffix(suffix)
                    own = earlier.pieces.setdefault(name, {})
                    own[kind] = Piece(archive, member.offset, member.size)
    except (OSError, ValueError, TypeError, AttributeError):
        earlier.pieces.clear()
        return
    for row in rows:
        earlier.rows[row.name] = row
        if layout.form == "png":
            kinds = layout.kinds
            earlier.pieces[row.name] = {k: Piece(layout.file(k, shard, row.name)) for k in kinds}


def _add_journal(
    earlier: Earlier, layout: Layout, shard: str, made_from: str, journal: Path
) -> None:
    try:
        content = journal.read_bytes()
    except OSError:  # its process has finished the shard meanwhile
        return
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    with suppress(ValueError, TypeError, AttributeError, KeyError, IndexError):
        if json.loads(lines[0]) != {"made_from": made_from}:
            return
        for line in lines[1:]:
            stored = json.loads(line)
            if "begun" in stored:
                earlier.begun.setdefault(stored["begun"], set()).add(stored["digest"])
                continue
            row = Row.of(stored["row"])
            if not _was_made(row):
                continue
            pieces = {}
            for kind, (offset, size, digest) in stored["files"].items():
                if layout.form == "png":
                    pieces[kind] = Piece(layout.file(kind, shard, row.name), digest=digest)
                else:
                    begun = journal.with_name(f"{journal.stem}.{kind}.tar")
                    whole = layout.archive(kind, shard)
                    pieces[kind] = Piece(begun, offset, size, digest, whole)
            earlier.rows[row.name], earlier.pieces[row.name] = row, pieces


def is_begun(layout: Layout, shard: str, name: str, digest: str) -> bool:
    """Whether a process that makes a shard now has noted a loose mask, see `ShardWriter.begin`."""
    line = _begun(name, digest)
    for journal in layout.unfinished(shard).glob("*.jsonl"):
        with suppress(OSError):  # its process has finished the shard meanwhile
            if line in journal.read_bytes():
                return True
    return False


def _begun(name: str, digest: str) -> bytes:
    """The line of a journal that says that a mask is about to be written."""
    return json.dumps({"begun": name, "digest": digest}).encode() + b"\n"


def _was_made(row: Row) -> bool:
    return row.status != "failed" or row.inputs is not None


class ShardWriter:
    """Writes the files of one shard; a photograph after the other, in their order.

    Args:
        layout: of the results.
        shard: its name.
        made_from: fingerprint of settings and weights.
    """

    def __init__(self, layout: Layout, shard: str, made_from: str) -> None:
        self.layout, self.shard, self.made_from = layout, shard, made_from
        self.rows: list[Row] = []
        self._lines = threading.Lock()
        machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
        self._stem = f"{machine}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._opened = ExitStack()
        self._archives: dict[str, tuple[BinaryIO, tarfile.TarFile]] = {}
        self._journal = self._opened.enter_context(_new(self._own("jsonl")))
        self._journal.write(json.dumps({"made_from": made_from}).encode() + b"\n")
        for kind in layout.kinds if layout.form == "tar" else ():
            file = self._opened.enter_context(_new(self._begun(kind)))
            # not closed with the others: that would end a tar that is to be gone on with
            tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
            self._archives[kind] = file, tar

    def begin(self, name: str, mask: bytes) -> None:
        """Note a loose mask before it is written; in several threads.

        So that, after a kill, it is known from one that somebody has put at its place.
        """
        self._note(_begun(name, hashlib.sha256(mask).hexdigest()))

    def add(self, row: Row, files: Files) -> None:
        """Note what became of a photograph, and append its files to the tars.

        Loose files are at their places already.
        """
        places = {}
        for kind, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            places[kind] = (self._append(kind, row.name, content), len(content), digest)
        self.rows.append(row)
        self._note(json.dumps({"row": row.known(), "files": places}).encode() + b"\n")

    def _note(self, line: bytes) -> None:
        with self._lines:
            self._journal.write(line)
            self._journal.flush()

    def _append(self, kind: str, name: str, content: bytes) -> int:
        """Append a file to the tar of its kind; returns where its content begins."""
        if kind not in self._archives:
            return 0
        file, tar = self._archives[kind]
        info = tarfile.TarInfo(f"{name}{self.layout.kinds[kind][1]}")
        info.size = len(content)
        tar.addfile(info, BytesIO(content))
        tar.members = []  # type: ignore[attr-defined]  # which it would keep
        file.flush()
        return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def finish(self, data: Mapping[str, Any], **facts: Any) -> None:
        """Make the shard whole.

        Args:
            data: what its photographs were, for the next start.
            facts: further ones for the record.

        Raises:
            OSError: something cannot be written; what was begun stays. `FileNotFoundError` also
                where another process has made the shard whole meanwhile.
        """
        layout, shard = self.layout, self.shard
        for file, tar in self._archives.values():
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        self.close()
        outputs = {kind: self._described(kind) for kind in layout.kinds}
        before = read_record(layout, shard)
        known = self._known([outputs, {} if before is None else before["outputs"]])
        if before is not None:
            layout.record(shard).unlink(missing_ok=True)
        if layout.form == "tar":
            for kind in layout.kinds:
                self._publish(kind, known[kind])
        else:
            _flush_file_system(layout.out)
        file_of_rows, table = layout.table(shard), table_of(self.rows)
        size = write_table(file_of_rows, table)
        index = {"file": _relative(file_of_rows, layout.out), "bytes": size}
        index["sha256"] = Contents().digest(file_of_rows)
        record = {
            "format": FORMAT,
            "shard": shard,
            "made_from": self.made_from,
            "data": dict(data),
            "outputs": {**outputs, "index": index},
            "statistics": statistics_of(table),
            "turned": turned_in(self.rows),
            **facts,
        }
        write_json(layout.record(shard), record)
        remove_unfinished(layout, shard)

    def _own(self, suffix: str) -> Path:
        return self.layout.unfinished(self.shard) / f"{self._stem}.{suffix}"

    def _begun(self, kind: str) -> Path:
        return self._own(f"{kind}.tar")

    def _known(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
        """The digests of the tars of each kind that weaktr has written, of now and before.

        They are noted, for whoever goes on where this process has given some tars their names.

        Args:
            outputs: of records.
        """
        own = self._own("known")
        noted = [read_json_object(path) for path in sorted(own.parent.glob("*.known"))]
        known = {
            kind: {d for one in noted for d in one.get(kind, [])} for kind in self.layout.kinds
        }
        for kind in known.keys() if self.layout.form == "tar" else ():
            known[kind] |= {one[kind].get("sha256") for one in outputs if kind in one} - {None}
        if self.layout.form == "tar":
            write_json(own, {kind: sorted(digests) for kind, digests in known.items()})
        return known

    def _described(self, kind: str) -> dict[str, Any]:
        """What the record says of the files of a kind."""
        layout = self.layout
        if layout.form == "tar":
            begun = self._begun(kind)
            place = _relative(layout.archive(kind, self.shard), layout.out)
            size, digest = begun.stat().st_size, Contents().digest(begun)
            return {"file": place, "bytes": size, "sha256": digest}
        rows = [row for row in self.rows if row.mask_digest is not None]
        places = [(row, layout.file(kind, self.shard, row.name)) for row in rows]
        if kind != MASKS:  # which one that somebody has changed may have alone
            places = [
                (row, path) for row, path in places if row.status != "edited" or path.is_file()
            ]
        sizes = [path.stat().st_size for _, path in places]
        folder = _relative(layout.folder(kind, self.shard), layout.out)
        return {"folder": folder, "files": len(sizes), "bytes": sum(sizes)}

    def _publish(self, kind: str, known: Collection[str]) -> None:
        """Give a tar its name; one there of which the digest is not known is kept aside."""
        target = self.layout.archive(kind, self.shard)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and not target.is_symlink():
            if Contents().digest(target) not in known:
                keep(target)
        elif os.path.lexists(target):
            keep(target)
        self._begun(kind).replace(target)
        flush(target.parent)

    def close(self) -> None:
        """Leave what was begun to whoever goes on."""
        self._opened.close()


def read_record(layout: Layout, shard: str) -> dict[str, Any] | None:
    """The record of a shard; None = it is not whole, or the record is damaged."""
    try:
        record = read_json(layout.record(shard))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    outputs = record.get("outputs")
    if not isinstance(outputs, dict) or not all(isinstance(one, dict) for one in outputs.values()):
        return None
    is_one = record.get("shard") == shard and isinstance(record.get("statistics"), dict)
    return record if is_one else None


def whole_record(layout: Layout, shard: str, made_from: str) -> dict[str, Any] | None:
    """The record of a shard of which all files are there, as it says; masks are not read.

    Loose masks are looked for by name and size; one that is newer than the record was changed, and
    so was one that could not be used. None = it is not whole, or of other settings.
    """
    record = read_record(layout, shard)
    if record is None or record.get("made_from") != made_from:
        return None
    try:
        for output in record["outputs"].values():
            if "file" in output and _size_of(layout.out / output["file"]) != output["bytes"]:
                return None
        has_all = set(layout.kinds) <= set(record["outputs"])
        is_whole = has_all and (layout.form == "tar" or _are_loose_files_whole(layout, shard))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_whole else None


def _are_loose_files_whole(layout: Layout, shard: str) -> bool:
    written = layout.record(shard).stat().st_mtime_ns
    columns = ["name", "status", "digest", "mask_digest", "mask_bytes"]
    rows = zip(*(c.to_pylist() for c in read_table(layout.table(shard), columns)), strict=True)
    starts = {kind: f"{layout.folder(kind, shard)}/" for kind in layout.kinds}
    for stored_name, state, made_from, mask, size in rows:
        kinds = list(layout.kinds) if mask is not None else []
        if state == "edited" or (state == "failed" and made_from is not None):
            kinds = [MASKS]  # which somebody has changed
        for kind in kinds:
            name = f"{named_text(stored_name)}{layout.kinds[kind][1]}"
            status = os.stat(starts[kind] + name)
            is_other = kind == MASKS and mask is not None and status.st_size != size
            if status.st_mtime_ns > written or is_other:
                return False
    return True


@contextmanager
def alone_at(layout: Layout, shard: str) -> Iterator[bool]:
    """Whether no other process works on a shard, during the ``with`` statement.

    Where a file system has no locks nobody is seen, and two processes may do the same work.
    """
    folder = layout.unfinished(shard)
    _make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError):
        yield True
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            if set(os.listdir(folder)) <= {".lock"}:
                remove_unfinished(layout, shard)  # while nobody else has the lock
        lock.release()


def clear_whole(layout: Layout, shards: Collection[str]) -> None:
    """Remove what processes that ended at the end of shards, which are whole, have left."""
    for shard in shards if (layout.out / UNFINISHED).is_dir() else ():
        if layout.unfinished(shard).is_dir():
            with alone_at(layout, shard) as alone:
                if alone:
                    remove_unfinished(layout, shard)
        else:
            remove_unfinished(layout, shard)  # folders above it


def remove_unfinished(layout: Layout, shard: str) -> None:
    """Remove what was begun of a shard, and folders that are empty then.

    Folders in it are of other shards: of ``a/b`` in that of ``a``.
    """
    folder = layout.unfinished(shard)
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
    with suppress(OSError):
        for place in (folder, *folder.parents):
            with suppress(FileNotFoundError):
                place.rmdir()
            if place == layout.out / UNFINISHED:
                break


def is_of_others(path: Path) -> bool:
    """Whether there is something at a place that no command of weaktr's wrote.

    What one wrote, and was cut off since, is weaktr's too.
    """
    return os.path.lexists(path) and not (is_sealed(path) or (path.is_file() and is_damaged(path)))


def _size_of(path: Path) -> int:
    return path.stat().st_size


def _new(path: Path) -> BinaryIO:
    """Open a file to be written, in a folder that other processes may remove when it is empty."""
    for _ in range(ATTEMPTS):
        _make_folder(path.parent)
        with suppress(FileNotFoundError):
            return path.open("xb")
    return path.open("xb")


def _make_folder(folder: Path) -> None:
    """Make a folder that other processes may remove when it is empty, at this moment too."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            return folder.mkdir(parents=True, exist_ok=True)
    return folder.mkdir(parents=True, exist_ok=True)


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


def _flush_file_system(folder: Path) -> None:
    """Bring loose files to the disk, all in one call."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
        if syncfs is None or syncfs(handle) != 0:
            os.sync()
    finally:
        os.close(handle)
