"""Files in tars, by paths that lead into them."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.trees import write_image, write_mask
from weaktr import tars
from weaktr.contents import Contents
from weaktr.data import DataError, Manifest, Sample, read_image, read_mask
from weaktr.data.classes import Classes
from weaktr.data.io import image_size, read_rgb
from weaktr.data.layout import missing_files
from weaktr.data.pngs import damage_in_data, is_whole_png
from weaktr.files import write_bytes

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these files."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["a.png", "./b/c.png", "b//d.png", "b/./d.png", "é/ü.png"])
def test_files_are_read_by_their_paths(tmp_path, form, name):
    archive = write(tmp_path / "x.tar", {"z": b"1" * 700, name: b"22", "y": b""}, FORMATS[form])
    assert tars.read_bytes(archive / name) == b"22"
    assert tars.read_bytes(archive / "z") == b"1" * 700
    assert tars.read_bytes(archive / "y") == b""
    assert tars.status(archive / name).st_size == 2
    assert tars.archive_of(archive / name) == (archive, Path(name).as_posix())
    assert [member.name for member in tars.members_of(archive)] == ["z", Path(name).as_posix(), "y"]
    assert tars.is_file(archive / name)
    assert not tars.is_file(archive / "other")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names(tmp_path, form):
    name = "/".join(["folder" * 20] * 5) + "/a.png"
    archive = write(tmp_path / "x.tar", {name: b"1", "b": b"2"}, FORMATS[form])
    assert tars.read_bytes(archive / name) == b"1"
    assert tars.read_bytes(archive / "b") == b"2"


def test_links_are_files_and_those_that_lead_out_of_the_archive_are_told(tmp_path):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("a")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"123"))
        for name, kind, target in (
            ("hard", tarfile.LNKTYPE, "a"),
            ("again", tarfile.LNKTYPE, "hard"),
            ("nowhere", tarfile.LNKTYPE, "b"),
            ("outside", tarfile.LNKTYPE, "/etc/passwd"),
            ("soft", tarfile.SYMTYPE, "a"),
            ("b/early", tarfile.SYMTYPE, "../late"),
            ("late", tarfile.SYMTYPE, "hard"),
            ("above", tarfile.SYMTYPE, "../../etc/passwd"),
            ("round", tarfile.SYMTYPE, "round"),
            ("folder", tarfile.DIRTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    whole, broken = (
        [member.name for member in tars.members_of(archive) if bool(member.missing) == is_broken]
        for is_broken in (False, True)
    )
    assert whole == ["a", "hard", "again", "soft", "b/early", "late"]
    assert {tars.read_bytes(archive / name) for name in whole} == {b"123"}
    assert broken == ["nowhere", "outside", "above", "round"]
    for name in broken:
        with pytest.raises(ValueError, match=rf"x\.tar: {name} is a link to .* not hold"):
            tars.read_bytes(archive / name)


def test_many_links_are_followed_in_one_pass(tmp_path):
    """Each in as many steps as its chain is long, whatever the number of links."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(5_000):
            info = tarfile.TarInfo(f"{number}.png")
            info.type, info.linkname = tarfile.SYMTYPE, "5000.png"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("5000.png"))
    members = tars.members_of(tmp_path / "x.tar")
    assert len(members) == 5_001 and not any(member.missing for member in members)


def test_two_tars_joined_as_files_are_refused(tmp_path):
    for form in ("gnu", "ustar"):
        one, two = (
            write(tmp_path / f"{name}.tar", {name: b"1"}, FORMATS[form]).read_bytes()
            for name in ("a", "b")
        )
        (tmp_path / "both.tar").write_bytes(one + two)
        with pytest.raises(ValueError, match=r"both\.tar: goes on behind its end"):
            tars.members_of(tmp_path / "both.tar")


def test_files_with_holes_are_refused(tmp_path):
    info = tarfile.TarInfo("a")
    info.size, info.type = 0, tarfile.GNUTYPE_SPARSE
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match=r"x\.tar: a is stored with holes: .* without --sparse"):
        tars.members_of(tmp_path / "x.tar")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compression_is_refused(tmp_path, mode):
    with tarfile.open(tmp_path / "x.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(ValueError, match=r"x\.tar: expected a tar without compression"):
        tars.read_bytes(tmp_path / "x.tar" / "a")


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path, form):
    name = "a" * (90 if form == "ustar" else 200)
    files = {name: b"1" * 700, "b": bytes(2000), "c": b"3"}
    content = write(tmp_path / "x.tar", files, FORMATS[form]).read_bytes()
    end = len(content.rstrip(b"\0")) // tars.BLOCK * tars.BLOCK + tars.BLOCK
    for size in (*range(0, end + 1, tars.BLOCK), *range(1, end, 333)):
        path = tmp_path / f"{size}.tar"
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"/{size}\.tar: (expected a tar|is cut off)"):
            tars.members_of(path)
    (tmp_path / "whole.tar").write_bytes(content[: end + tars.BLOCK])
    assert [member.name for member in tars.members_of(tmp_path / "whole.tar")] == [*files]


LONG = "/".join(["folder" * 6] * 4) + "/a.png"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mtime", [0, 1.25])
@pytest.mark.parametrize("names", [["a", "b/c", "./d"], ["é", "b"], [LONG, "b"], ["a" * 99], []])
def test_the_quick_reader_of_headers_reads_what_tarfile_does(tmp_path, form, mtime, names):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w", format=FORMATS[form]) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, mtime
            tar.addfile(info, io.BytesIO(bytes(700)))
    with open(archive, "rb") as file:
        quick, usual = tars._read_plain(file), list(tars._read_headers(archive, file))
    assert quick == usual or (quick is None and form == "gnu")
    assert [member.name for member in usual] == [name.removeprefix("./") for name in names]


def test_the_quick_reader_takes_a_damaged_tar_for_what_tarfile_does_or_leaves_it(tmp_path):
    """Each byte of its headers changed."""
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é/" + "a" * 101)
        info.size, info.mtime = 3, 1.25
        tar.addfile(info, io.BytesIO(b"123"))
    content = archive.read_bytes()
    left = 0
    for place in range(4 * tars.BLOCK):
        for value in (0, ord("7"), content[place] ^ 1):
            damaged = bytearray(content)
            damaged[place] = value
            for block in (0, 2):  # so that not only the checksum tells
                header = damaged[block * tars.BLOCK : (block + 1) * tars.BLOCK]
                checksum = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
                damaged[block * tars.BLOCK + 148 : block * tars.BLOCK + 156] = checksum
            quick = tars._read_plain(io.BytesIO(damaged))
            left += quick is None
            if quick is None:
                continue
            try:
                assert quick == list(tars._read_headers(archive, io.BytesIO(damaged)))
            except ValueError:  # in numbers that do not matter: of the owner, of the device
                assert place % tars.BLOCK in (*range(100, 124), *range(136, 148), *range(329, 345))
    assert 0 < left < 4 * tars.BLOCK


def test_a_tar_of_nothing(tmp_path):
    assert tars.members_of(write(tmp_path / "x.tar", {})) == []
    (tmp_path / "y.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"y\.tar: expected a tar without compression"):
        tars.members_of(tmp_path / "y.tar")


def test_what_is_no_tar(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"1" * 5000)
    with pytest.raises(ValueError, match=r"x\.jpg: expected a tar without compression"):
        tars.read_bytes(tmp_path / "x.jpg" / "a")
    with pytest.raises(FileNotFoundError):
        tars.read_bytes(tmp_path / "none.tar" / "a")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match="expected a file, got a pipe"):
        tars.members_of(tmp_path / "pipe.tar")
    assert not tars.is_file(tmp_path / "x.jpg" / "a")


def test_a_folder_called_like_a_tar(tmp_path):
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "a").write_bytes(b"1")
    assert tars.read_bytes(tmp_path / "x.tar" / "a") == b"1"
    assert tars.opened(tmp_path / "x.tar" / "a") == tmp_path / "x.tar" / "a"
    assert tars.archive_of(tmp_path / "x.tar" / "a") is None
    assert tars.archive_of(tmp_path / "x.tar" / "none") is None
    with pytest.raises(FileNotFoundError):
        tars.opened(tmp_path / "x.tar" / "none")


def test_an_archive_that_is_replaced_is_read_again(tmp_path):
    archive = write(tmp_path / "x.tar", {"a": b"1", "b": b"2"})
    assert tars.read_bytes(archive / "b") == b"2"
    other = write(tmp_path / "y.tar", {"b": b"333", "c": b"4"})
    write_bytes(archive, other.read_bytes())
    assert tars.read_bytes(archive / "b") == b"333"
    with pytest.raises(FileNotFoundError, match=r"x\.tar: holds no a"):
        tars.read_bytes(archive / "a")


def test_an_archive_that_is_replaced_while_threads_read_it_is_one_of_both(tmp_path):
    first = write(tmp_path / "1", {str(k): b"1" * (k + 1) for k in range(50)}).read_bytes()
    second = write(tmp_path / "2", {str(k): b"2" * (99 - k) for k in range(50)}).read_bytes()
    archive = tmp_path / "x.tar"
    archive.write_bytes(first)
    end = time.monotonic() + 1

    def replace():
        while time.monotonic() < end:
            write_bytes(archive, second, durable=False)
            write_bytes(archive, first, durable=False)

    def read(_):
        while time.monotonic() < end:
            for k in range(50):
                content = tars.read_bytes(archive / str(k))
                assert content in (b"1" * (k + 1), b"2" * (99 - k))

    with ThreadPoolExecutor(5) as pool:
        replacing = pool.submit(replace)
        list(pool.map(read, range(4)))
        replacing.result()


def test_threads_read_the_headers_once(tmp_path, monkeypatch):
    archive = write(tmp_path / "x.tar", {str(k): b"%d" % k for k in range(500)})
    calls = []

    def counted(*arguments, real=tars._read_plain):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(tars, "_read_plain", counted)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda k: tars.read_bytes(archive / str(k)), range(500)))
    assert contents == [b"%d" % k for k in range(500)]
    assert len(calls) == 1


def test_headers_of_few_archives_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "KEPT_MEMBERS", 25)
    archives = [write(tmp_path / f"{n}.tar", {str(k): b"1" for k in range(10)}) for n in range(5)]
    for _ in range(2):
        for archive in archives:
            assert tars.read_bytes(archive / "3") == b"1"
    assert sum(len(table[0]) for _, table in tars._tables.values()) <= 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_begins_while_a_thread_reads_is_not_held_up(tmp_path):
    archive = write(tmp_path / "x.tar", {"a": b"1"})
    with tars._lock:
        process = get_context("fork").Process(target=tars.read_bytes, args=(archive / "a",))
        process.start()
    process.join(20)
    assert process.exitcode == 0


# ---- readers of photographs and masks -----------------------------------------------------------


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    """The same photographs and mask in a folder and in a tar."""
    folder = tmp_path / "folder"
    write_image(folder / "b" / "a.png")
    write_image(folder / "a.jpg")
    write_mask(folder / "a.mask.png", [1, 2, 255])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, path.relative_to(folder).as_posix())
    return folder, tmp_path / "x.tar"


def samples(root: Path) -> list[Sample]:
    mask = root / "a.mask.png"
    return [
        Sample("a", root / "a.jpg", (0,), mask, ""),
        Sample("b", root / "b/a.png", (), None, ""),
    ]


def test_photographs_and_masks_are_those_of_a_folder(both):
    for one, other in zip(*map(samples, both), strict=True):
        np.testing.assert_array_equal(read_image(one), read_image(other))
        assert image_size(one.image) == image_size(other.image)
    first, second = (samples(root)[0] for root in both)
    np.testing.assert_array_equal(read_mask(first, 3), read_mask(second, 3))
    assert is_whole_png(second.mask)
    assert is_whole_png(second.mask, image_size(second.image))
    assert not is_whole_png(second.image)
    assert damage_in_data(tars.read_bytes(second.mask), rows=True) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "cannot be read as an image"),
        (lambda content: b"no picture", "cannot be read as an image: cannot identify image file"),
        (lambda content: content[:-30], "cannot be read as an image: "),
    ],
)
def test_a_damaged_photograph_is_told_as_in_a_folder(both, change, message):
    folder, archive = both
    content = change((folder / "a.jpg").read_bytes())
    (folder / "a.jpg").write_bytes(content)
    write(archive, {"a.jpg": content})
    told = []
    for root in both:
        with pytest.raises(DataError) as error:
            read_rgb(root / "a.jpg", "list:1")
        told.append(str(error.value).replace(str(root), "ROOT"))
    assert told[0] == told[1]
    assert told[0].startswith("ROOT/a.jpg (list:1): ")
    assert message in told[0]


def test_what_is_not_there_is_told(both):
    _, archive = both
    with pytest.raises(DataError, match=r"x\.tar/none\.png: file is missing"):
        read_rgb(archive / "none.png")
    archive.write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(DataError, match=r"x\.tar/a\.jpg: .*x\.tar: expected a tar without"):
        read_rgb(archive / "a.jpg")


def test_manifests_and_digests(both, tmp_path):
    folder, archive = both
    manifest = Manifest("m", "train", Classes(("c", "d")), tuple(samples(archive)))
    assert not missing_files(manifest)
    manifest.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == manifest
    before = manifest.fingerprint()
    file = tmp_path / "contents.json"
    contents = Contents(file)
    assert contents.digest(archive / "a.jpg") == contents.digest(folder / "a.jpg")
    contents.save()
    write(archive, {"a.jpg": b"other", "b/a.png": b"1"})
    assert Contents(file).digest(archive / "a.jpg") != contents.digest(folder / "a.jpg")
    assert manifest.fingerprint() != before
    (missing,) = missing_files(manifest)
    assert missing.file == f"{archive}/a.mask.png"


def test_an_archive_that_is_old_is_not_digested_again(both, monkeypatch):
    _, archive = both
    monkeypatch.setattr("weaktr.contents.SETTLED_AFTER_NS", 0)
    contents = Contents()
    digest = contents.digest(archive / "a.jpg")
    monkeypatch.setattr(tars, "read_bytes", None)
    assert contents.digest(archive / "a.jpg") == digest


def test_ordinary_files_are_looked_at_no_more_than_before(both, monkeypatch):
    folder, _ = both
    calls = []

    def counted(path, *arguments, real=os.stat, **options):
        calls.append(path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", counted)
    read_rgb(folder / "a.jpg")
    monkeypatch.undo()
    assert len(calls) <= 2  # whether it is a folder, whether it is a file


def test_pictures_in_memory_are_closed(both):
    with Image.open(tars.opened(both[1] / "a.jpg")) as image:
        assert image.size == (32, 24)
