"""Unpacking: nothing outside the folder, nothing half, nothing twice."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from weaktr.data.prepare import ArchiveError
from weaktr.data.prepare.archives import Ledger
from weaktr.data.prepare.unpack import _Info, _Tar, members, most_members, unpack

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
    whole = (out / "top/sub/b.bin").read_bytes()
    (out / "top/sub/b.bin").write_bytes(whole[:1])  # what a power cut may leave
    (out / "top/c").unlink()
    assert unpack(path, out, same) == 2
    assert tree(out) == {**CONTENT, "top/c": b"c"}
    assert (out / "top/a.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_file_that_was_corrected_stays(
    tmp_path: Path, name: str, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path, out = make(tmp_path / name, CONTENT), tmp_path / "out"
    unpack(path, out, same)
    (out / "top/a.txt").write_bytes(b"my correction")
    unpack(path, out, same)
    assert (out / "top/a.txt").read_bytes() == b"my correction"
    assert "1 files are there with other content and stay (top/a.txt)" in caplog.text


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


@pytest.mark.parametrize(("name", "make"), MAKERS)
@pytest.mark.parametrize(
    "member", ["a\nb", "a\x1b[2J", "\x7f", "x" * 256, "a/" + "é" * 130, "ab/" * 400]
)
def test_names_that_are_none(
    tmp_path: Path, name: str, make: Callable[..., Path], member: str
) -> None:
    path = make(tmp_path / name, {member: b"x"})
    with pytest.raises(ArchiveError, match=r"refused, .* is no name for a file") as caught:
        unpack(path, tmp_path / "out", same)
    assert str(caught.value).isprintable()
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_file_and_a_folder_of_one_name(
    tmp_path: Path, name: str, make: Callable[..., Path]
) -> None:
    for number, content in enumerate(({"a": b"x", "a/b": b"y"}, {"a/b": b"y", "a": b"x"})):
        path = make(tmp_path / name, content)
        with pytest.raises(ArchiveError, match="is both a file and a folder"):
            unpack(path, tmp_path / f"out{number}", same)


@pytest.mark.parametrize("mode", ["zip", "gz", "bz2", "xz"])
def test_bombs(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by what they claim, before the bytes are there; a limit of 1 MB stands for 512."""
    monkeypatch.setattr("weaktr.data.arrays.MOST_INFLATED", 1 << 20)
    path = tmp_path / f"a.{mode}"
    content = {"small": b"x" * 100, "a": bytes(1 << 21), "b": bytes(10)}
    if mode == "zip":
        make_zip(path, content)
    else:
        packer = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[mode]
        path.write_bytes(packer(make_tar(tmp_path / "a.tar", content).read_bytes()))
    with pytest.raises(ArchiveError, match=r"refused, \d+ bytes that claim to hold 209[78]"):
        unpack(path, tmp_path / "out", same)
    assert set(tree(tmp_path / "out")) <= {"small"}
    with pytest.raises(ArchiveError, match="claim to hold"):  # also where it would be left out
        unpack(path, tmp_path / "out", lambda _: None)


def test_tars_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, 1 << 70
    plain = tarfile.TarInfo("x")
    plain.size = 1 << 60
    for info in (long_name, extended, plain):
        for place in (tarfile.TarInfo("first").tobuf(), b""):
            path = tmp_path / "a.tar"
            path.write_bytes(place + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
            with pytest.raises(ArchiveError, match=r"get it again|claim to hold"):
                unpack(path, tmp_path / "out", same)
    path = tmp_path / "a.tgz"  # what a long name would hold, compressed
    with gzip.open(path, "wb") as file:
        file.write(long_name.tobuf(tarfile.GNU_FORMAT) + b"x" * (1 << 20))
    with pytest.raises(ArchiveError, match=r"a header of 8589934592 bytes|get it again"):
        unpack(path, tmp_path / "out", same)


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header of a tar with a size of any sign."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (
        b"%011o\0" % size if size >= 0 else b"\xff" + (256**11 + size).to_bytes(11, "big")
    )
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    return bytes(block)


def said_before(name: str, value: object, kind: bytes = b"x") -> bytes:
    """A pax header; its record has less than 100 bytes."""
    record = f" {name}={value}\n"
    content = f"{len(record) + 2}{record}".encode()
    return header("pax", len(content), kind) + content.ljust(512, b"\0")


@pytest.mark.parametrize(
    "content",
    [
        header("a", -512),
        header("a", 0) + header("b", -1024),
        header("a", 0, b"5") + header("b", -(10**13), b"5") + header("c", 0),
        said_before("size", -1536) + header("._a", 0),
        said_before("size", -1024) + header("a", 0),
        header("a", 0) + said_before("size", -2048) + header("b", 0),
        said_before("size", -(10**13)) + header("a", 0),
        said_before("size", -1, b"g") + header("a", 0),
        said_before("GNU.sparse.realsize", "1e5") + header("a", 0),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_members_of_less_than_no_bytes(
    tmp_path: Path, content: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """The member that follows one of -1536 bytes is itself, again and again."""
    path = tmp_path / "a.tar"
    path.write_bytes(pack(content + bytes(1024)))
    with pytest.raises(ArchiveError, match=rf"{path}: cannot be read as an archive") as caught:
        for count, _ in enumerate(members(path)):
            assert count < 9
    assert "\n" not in str(caught.value)


HOLES = [
    said_before("GNU.sparse.size", 5) + header("a", 0),
    said_before("GNU.sparse.map", "0,1") + header("a", 0),
    said_before("GNU.sparse.major", 1, b"g") + said_before("GNU.sparse.minor", 0)
    + header("a", 512) + b"99999999\n" * 999,
    header("a", 1 << 30, tarfile.GNUTYPE_SPARSE),
]  # fmt: skip


@pytest.mark.parametrize("content", HOLES)
@pytest.mark.parametrize("first", [b"", header("first", 0)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_with_holes(
    tmp_path: Path, content: bytes, first: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """The map of the holes may be longer than any memory, and is read with the header."""
    path = tmp_path / "a.tar"
    path.write_bytes(pack(first + content + bytes(1024)))
    with pytest.raises(ArchiveError, match=rf"{path}: refused, it has files with holes; unpack"):
        unpack(path, tmp_path / "out", same)


def test_what_is_refused_are_methods_of_tarfile() -> None:
    """They have no public names; in a Python that renames them, files with holes would pass."""
    ours = {name for name in vars(_Info) if name.startswith("_proc")}
    theirs = {name for name in vars(tarfile.TarInfo) if re.match("_proc.*sparse", name)}
    assert ours == theirs and len(ours) == 4


def test_tars_of_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a few bytes of the archive, and time and memory of whoever reads it."""
    path = make_tar(tmp_path / "a.tgz", {f"{number:04}": b"" for number in range(300)})
    assert len([*members(path)]) == 300
    monkeypatch.setattr("weaktr.data.prepare.unpack.most_members", lambda size: 299)
    with pytest.raises(ArchiveError, match=r"refused, \d+ bytes with 300 members and more"):
        unpack(path, tmp_path / "out", lambda _: None)
    monkeypatch.undo()
    monkeypatch.setattr("weaktr.data.arrays.MOST_INFLATED", 300 * 512 - 1)
    with pytest.raises(ArchiveError, match=r"claim to hold 153600"):
        unpack(path, tmp_path / "out", lambda _: None)


def test_headers_count_as_what_an_archive_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of empty files, and what says more of them; compressed, they are next to nothing."""
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress((said_before("comment", "x" * 60) + header("a", 0)) * 99))
    assert len([*members(path)]) == 99
    monkeypatch.setattr("weaktr.data.arrays.MOST_INFLATED", 99 * 3 * 512 - 1)
    with pytest.raises(ArchiveError, match="claim to hold 152064"):
        list(members(path))


def test_entries_for_all_further_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for count in (100, 101):
        parts = [said_before(f"k{k}", 1, b"g") + header("a", 0) for k in range(count)]
        path.write_bytes(b"".join(parts) + bytes(1024))
        if count == 100:
            assert len([*members(path)]) == 100
    with pytest.raises(ArchiveError, match="101 entries for all members"):
        list(members(path))


def test_data_sets_have_fewer_members_than_archives_may() -> None:
    for count, size in ((40_000, 2 * 10**9), (123_000, 25 * 10**9), (35_000, 14 * 10**8)):
        assert count < most_members(size)
    assert most_members(10**6) < 100_000


def test_headers_of_a_tar_are_not_kept(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{number}": b"x" for number in range(9)})
    with open(path, "rb") as file, _Tar.open(fileobj=file) as archive:
        for number in range(9):
            info = archive.next()
            assert info is not None and info.name == str(number)
            assert len(vars(archive)["members"]) <= 1
        assert archive.next() is None


@pytest.mark.parametrize(("field", "value"), [("compress_type", 9), ("flag_bits", 1)])
def test_zips_to_repack(tmp_path: Path, field: str, value: int) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"alpha" * 99})
    start, content = {"compress_type": (8, 10), "flag_bits": (6, 8)}[field], path.read_bytes()
    changed = bytearray(content)
    changed[start[0]] = changed[content.index(b"PK\1\2") + start[1]] = value
    path.write_bytes(changed)
    with pytest.raises(ArchiveError, match=r"'a' is encrypted, or .* repack it with Deflate"):
        unpack(path, tmp_path / "out", same)


def test_a_zip_whose_sizes_lie(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"b.bin": b"x" * 5000})
    content = path.read_bytes()
    for size in (10, 5001, 200_000_000):
        path.write_bytes(content.replace(struct.pack("<I", 5000), struct.pack("<I", size)))
        with pytest.raises(ArchiveError, match=r"damaged at 'b\.bin'"):
            unpack(path, tmp_path / "out", same)
        assert tree(tmp_path / "out") == {}


def test_damage_of_every_byte_is_told(tmp_path: Path) -> None:
    """One line that names the archive, wherever the damage is; never a traceback."""
    for name, make in MAKERS:
        whole = make(tmp_path / name, {"a": b"alpha", "sub/b": b"beta" * 9}).read_bytes()
        path = tmp_path / f"damaged{name}"
        for place in range(0, len(whole), 1 + len(whole) // 150):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                unpack(path, tmp_path / "out", same)
            except ArchiveError as error:
                assert str(path) in str(error) and "\n" not in str(error)


def test_a_damaged_note_counts_as_none(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", CONTENT)
    ledger = Ledger(tmp_path)
    ledger.add(path, "unpacked")
    assert ledger.has(path, "unpacked")
    for text in ("", "{", "[1]", "3"):
        (tmp_path / ".prepared" / "a.zip.json").write_text(text)
        assert not ledger.has(path, "unpacked")
    ledger.add(path, "unpacked")
    assert ledger.has(path, "unpacked")
