"""Unpacking: nothing outside the folder, nothing half, nothing twice."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from weaktr.data.prepare import ArchiveError
from weaktr.data.prepare.unpack import members, unpack

CONTENT = {"top/a.txt": b"alpha", "top/sub/b.bin": bytes(range(256)) * 2000}


def make_zip(path: Path, content: dict[str, bytes], *, link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo("top/link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, link)
    return path


def make_tar(
    path: Path, content: dict[str, bytes], *, link: str = "", kind: bytes = tarfile.SYMTYPE
) -> Path:
    mode = "w:gz" if path.suffix == ".tgz" else "w"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("top/link")
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return path


MAKERS = [("a.zip", make_zip), ("a.tar", make_tar), ("a.tgz", make_tar)]


def tree(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def same(name: str) -> str:
    return name


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_unpacks_and_goes_on(tmp_path: Path, name: str, make: Callable[..., Path]) -> None:
    clutter = {"__MACOSX/top/._a.txt": b"x", "top/.DS_Store": b"x", "./top/c": b"c"}
    path, out = make(tmp_path / name, {**CONTENT, **clutter}), tmp_path / "out"
    assert unpack(path, out, same) == 3
    assert tree(out) == {**CONTENT, "top/c": b"c"}
    before = (out / "top/a.txt").stat().st_mtime_ns
    (out / "top/sub/b.bin").write_bytes(b"half")  # what a power cut may leave
    (out / "top/c").unlink()
    assert unpack(path, out, same) == 2
    assert tree(out) == {**CONTENT, "top/c": b"c"}
    assert (out / "top/a.txt").stat().st_mtime_ns == before


def test_place_moves_and_leaves_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", CONTENT)
    unpack(path, tmp_path / "out", lambda name: "x.bin" if name.endswith(".bin") else None)
    assert list(tree(tmp_path / "out")) == ["x.bin"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "top/../../evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize(("archive", "make"), MAKERS)
def test_names_that_lead_out(
    tmp_path: Path, archive: str, make: Callable[..., Path], name: str
) -> None:
    path = make(tmp_path / archive, {name: b"evil"})
    before = set(os.listdir(tmp_path))
    with pytest.raises(ArchiveError, match="refused"):
        unpack(path, tmp_path / "out", same)
    assert tree(tmp_path / "out") == {}
    assert set(os.listdir(tmp_path)) == before | {"out"}
    with pytest.raises(ArchiveError, match="refused"):  # also where it would be left out
        unpack(path, tmp_path / "out", lambda _: None)


@pytest.mark.parametrize(("archive", "make"), MAKERS)
def test_links_are_refused(tmp_path: Path, archive: str, make: Callable[..., Path]) -> None:
    path = make(tmp_path / archive, CONTENT, link="/etc/passwd")
    with pytest.raises(ArchiveError, match="'top/link' is a link"):
        unpack(path, tmp_path / "out", same)
    assert not (tmp_path / "out/top/link").is_symlink()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_hard_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", {}, link="a.txt", kind=kind)
    with pytest.raises(ArchiveError, match="link or device"):
        unpack(path, tmp_path / "out", same)


def test_links_that_are_there_already_lead_nowhere(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "top").symlink_to(outside)
    path = make_zip(tmp_path / "a.zip", CONTENT)
    with pytest.raises(ArchiveError, match="outside"):
        unpack(path, out, same)
    assert tree(outside) == {}
    (out / "top").unlink()
    (out / "top").mkdir()
    (outside / "kept").write_bytes(b"kept")
    (out / "top/a.txt").symlink_to(outside / "kept")
    unpack(path, out, same)  # the link is replaced, not followed
    assert tree(outside) == {"kept": b"kept"}
    assert (out / "top/a.txt").read_bytes() == b"alpha"


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_cut_off_archives(tmp_path: Path, name: str, make: Callable[..., Path]) -> None:
    path = make(tmp_path / name, CONTENT)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArchiveError, match="get it again"):
        unpack(path, tmp_path / "out", same)
    assert tree(tmp_path / "out").items() <= CONTENT.items()  # no half file


def test_damaged_member(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"b.bin": CONTENT["top/sub/b.bin"]})
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ArchiveError, match=r"damaged at 'b\.bin'"):
        unpack(path, tmp_path / "out", same)
    assert tree(tmp_path / "out") == {}


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>please log in</html>")
    with pytest.raises(ArchiveError, match="cannot be read as an archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", same)


def test_folders_read_like_archives(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip", CONTENT), tmp_path / "out", same)
    entries = list(members(tmp_path / "out"))
    assert [member.name for member in entries] == ["top/a.txt", "top/sub/b.bin"]
    assert [member.position for member in entries] == [0, 5]
    entries[0].copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"alpha"
