"""Where a preparation takes its archives from, and what it notes for the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from weaktr.data.prepare.archives import Ledger, find
from weaktr.data.prepare.download import Patience, download
from weaktr.data.prepare.official import Archive
from weaktr.data.prepare.unpack import unpack
from weaktr.files import read_json_object, write_json

#: What `Sources.origin` returns for what was there before the first run.
AS_FOUND = "as it was found"


class Sources:
    """The archives of one data set.

    Args:
        root: the data set's folder; created if missing and `fetch` is set.
        fetch: whether to download what is not there, into ``root/downloads``.
        archives: a further folder with archives.
        patience: how hard to try to download.

    Raises:
        ValueError: `root` or `archives` is no folder.
    """

    def __init__(
        self,
        root: Path,
        *,
        fetch: bool,
        archives: str | Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        if not root.is_dir() and not fetch:
            raise ValueError(f"root: {root} is no folder; make it, or add --download")
        if archives is not None and not Path(archives).is_dir():
            raise ValueError(f"archives: expected a folder, got {str(archives)!r}, which is none")
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.fetch, self.patience = root, fetch, patience
        self.folders = [root, root / "downloads", *([Path(archives)] if archives else [])]
        self._ledger = Ledger(root)
        self._origins = root / ".prepared/origins.json"

    def find(self, names: Sequence[str], besides: Path) -> Path | None:
        """The first of `names` that is in one of the folders and is not `besides`."""
        candidates = (folder / name for name in names for folder in self.folders)
        own = besides.resolve()
        return next((path for path in candidates if path.exists() and path.resolve() != own), None)

    def archive(self, archive: Archive) -> Path | None:
        """The path of an archive on disk, else downloaded if allowed, else None; verified.

        Raises:
            ArchiveError: it is damaged, or cannot be downloaded.
        """
        path = find(archive.name, self.folders)
        if path is not None:
            return self._ledger.verified(path, archive)
        if not self.fetch:
            return None
        path = download(archive, self.root / "downloads", self.patience)
        self._ledger.add(path, "verified", archive.md5)
        return path

    def unpack(
        self, archive: Archive, folder: Path, place: Callable[[str], str | None], *, wanted: bool
    ) -> int:
        """Unpack an archive if files of it are missing, or an earlier run was interrupted in it.

        Args:
            archive: see `archive`.
            folder, place: see `weaktr.data.prepare.unpack.unpack`.
            wanted: whether files are known to be missing.

        Returns:
            The number of files written.
        """
        if not wanted and not self._is_interrupted(archive):
            return 0
        path = self.archive(archive)
        if path is None:
            return 0
        self._ledger.add(path, "begun")
        written = unpack(path, folder, place)
        self._ledger.add(path, "unpacked")
        return written

    def origin(self, what: str, text: str | None = None) -> str:
        """Note where something comes from (with `text`), or return what was noted."""
        noted = read_json_object(self._origins) if self._origins.is_file() else {}
        if text is None:
            return str(noted.get(what, AS_FOUND))
        if noted.get(what) != text:
            write_json(self._origins, {**noted, what: text})
        return text

    def remedy(self, *archives: Archive) -> str:
        """What to do where archives are missing."""
        urls = " and ".join(archive.urls[0] for archive in archives)
        return f"add --download, or put {urls} into {self.root / 'downloads'}"

    def _is_interrupted(self, archive: Archive) -> bool:
        """Whether an earlier run began to unpack an archive and did not finish."""
        path = find(archive.name, self.folders)
        return (
            path is not None
            and self._ledger.has(path, "begun")
            and not self._ledger.has(path, "unpacked")
        )
