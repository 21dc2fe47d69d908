"""Files are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

import weaktr.files
from weaktr.contents import Contents
from weaktr.files import (
    clear_abandoned,
    files_below,
    names_in,
    read_json,
    read_json_object,
    read_text,
    require_file,
    require_replaceable,
    whole_file,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_json(path, {"old": 1})

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(weaktr.files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_that_raises_leaves_nothing(tmp_path, durable):
    path = tmp_path / "deep" / "file"
    with pytest.raises(KeyboardInterrupt), whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: expected JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")
    write_json(tmp_path / "x.json", [1])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]


def test_what_a_killed_process_left_of_a_file_is_cleared_when_it_is_written_again(tmp_path):
    """Not what another process still writes, nor what is left of other files."""
    path = tmp_path / "a.json"
    with whole_file(path) as temporary:
        temporary.write_text("{}")
        digits = temporary.name[1:-5]
    start, process, end = digits[:16], digits[16:24], digits[24:]
    assert int(process, 16) == os.getpid()
    dead = subprocess.Popen(["true"])
    dead.wait()
    others = [f".{start}{os.getppid():08x}{end}.part", f".{'0' * 16}{dead.pid:08x}{end}.part"]
    for name in (f".{start}{dead.pid:08x}{end}.part", *others):
        (tmp_path / name).write_text("half")
    write_json(path, [])
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["a.json", *others])


def test_what_killed_processes_left_below_a_folder_is_cleared(tmp_path):
    """Not what another process still writes, what another machine may write, nor other files."""
    path = tmp_path / "a/b/c.png"
    with whole_file(path) as temporary:
        digits = temporary.name[1:-5]
    other, machine, end = digits[:10], digits[10:16], digits[24:]
    dead = subprocess.Popen(["true"])
    dead.wait()
    stay = [
        f".{other}{machine}{os.getppid():08x}{end}.part",
        f".{other}{'0' * 6}{dead.pid:08x}{end}.part",
        f"x.{other}{machine}{dead.pid:08x}{end}.part",
        "c.png",
    ]
    for name in (f".{other}{machine}{dead.pid:08x}{end}.part", *stay):
        (path.parent / name).write_text("half")
    clear_abandoned(tmp_path)
    assert sorted(os.listdir(path.parent)) == sorted(stay)
    clear_abandoned(tmp_path / "missing")


def test_the_name_of_a_file_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    write_json(path, [1])
    assert read_json(path) == [1]


def test_a_file_that_weaktr_did_not_write_is_not_replaced(tmp_path):
    mark = b"weaktr"
    require_replaceable(tmp_path / "new", mark)
    ours, empty, theirs = (tmp_path / name for name in ("ours", "empty", "theirs"))
    ours.write_bytes(b"x" * 99 + b"weaktr" + b"x" * 10**6)
    empty.touch()
    theirs.write_bytes(b"x" * 10**6 + b"weaktr" + b"x" * 10**6)
    (tmp_path / "link").symlink_to(ours)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path in (ours, empty):
        require_replaceable(path, mark)
    for path in (theirs, tmp_path, tmp_path / "link", tmp_path / "gone"):
        with pytest.raises(ValueError, match="is there already, and weaktr did not write it"):
            require_replaceable(path, mark)


DEEP = 100_000
WRONG_JSON = {
    "deep list": (b"[" * DEEP + b"]" * DEEP, "nested too deep"),
    "deep object": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deep"),
    "long integer": (b"9" * 5000, "limit"),
    "NaN": (b'{"a": NaN}', "expected finite numbers, got NaN"),
    "infinite": (b'{"a": [-Infinity]}', "expected finite numbers, got -Infinity"),
    "beyond floats": (b'{"a": 1e999}', "expected finite numbers, got 1e999"),
    "key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
    "empty": (b"", "Expecting value"),
    "cut off": (b'{"a": [1, 2', "Expecting ',' delimiter"),
    "two values": (b"{} {}", "Extra data"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "expected text in UTF-8"),
    "UTF-16 unmarked": ('{"a": 1}'.encode("utf-16-le"), "got a zero byte in line 1"),
    "Latin-1": ('{"a": "ä"}'.encode("latin-1"), "expected text in UTF-8"),
    "half a mark": (b"\xef\xbb", "expected text in UTF-8"),
    "binary": (b"{}\n\0\n", "got a zero byte in line 2"),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_json_is_refused_in_one_line(tmp_path, case):
    content, message = WRONG_JSON[case]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected ") and message in text and "\n" not in text


def test_a_key_that_stands_twice_among_many_is_found_at_once(tmp_path):
    keys = [*range(30_000), 29_999]
    (tmp_path / "a.json").write_text("{" + ", ".join(f'"{key}": 0' for key in keys) + "}")
    begin = time.process_time()
    with pytest.raises(ValueError, match="the key '29999' stands twice"):
        read_json(tmp_path / "a.json")
    assert time.process_time() - begin < 1  # each key compared with each: 10 s


def test_json_with_a_byte_order_mark_and_without_limits(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1e308, "b": -0.5, "c": 123456789012345678901234567890}')
    assert read_json(path) == {"a": 1e308, "b": -0.5, "c": 123456789012345678901234567890}
    path.write_bytes(b'{"a": [NaN, 1e999]}')
    assert str(read_json(path, finite=False)) == "{'a': [nan, inf]}"


def test_line_ends_of_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffa\r\nb\rc\u2028\n".encode())
    assert read_text(path) == "a\nb\nc\u2028\n"
    assert read_text(path, line_ends=True) == "a\r\nb\rc\u2028\n"


def test_what_is_no_text_file(tmp_path):
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: expected a JSON object, got a list"):
        read_json_object(tmp_path / "list.json")


CLUTTER = (
    "._a.png", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._a.png",
    "__MACOSX/b.png", ".thumbnails/a.png", "deep/._a.png", "deep/.cache/x/a.png",
    "@eaDir/a.png", "$RECYCLE.BIN/b.png",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # the path of a socket has a hundred characters at most
    path = Path("x.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    for read in (require_file, read_text, read_json, Contents().digest):
        with pytest.raises(ValueError, match=rf"^{path}: expected a file, got a {kind}$"):
            read(path)
    with pytest.raises(FileNotFoundError):
        require_file(Path("nowhere"))


def test_what_systems_put_beside_data_is_not_listed(tmp_path):
    folder = tmp_path / ".results"  # the folder that was named may be hidden
    for name in ("a.png", "deep/b.v2.png", "c.npy", *CLUTTER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "d.png").mkdir()
    assert names_in(folder, ".png") == (["a", "deep/b.v2"], ".png")
    assert names_in(folder, ".npz", ".npy") == (["c"], ".npy")
    listed = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
    assert listed == ["a.png", "c.npy", "deep/b.v2.png"]
    with pytest.raises(ValueError, match=r"no NPZ in .* \(\.npz\), there are \."):
        names_in(folder, ".npz")
    with pytest.raises(ValueError, match="none: expected a folder, there is none of that name"):
        names_in(tmp_path / "none", ".png")


def test_pipes_are_not_listed_and_what_cannot_be_looked_at_is_there(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "none")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/b.png").write_bytes(b"")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names = {path.name for path in files_below(tmp_path)}
    assert names == {"a.png", "gone.png", "round.png", "closed"}
    with pytest.raises(PermissionError, match=r"/closed: cannot be read: permission denied$"):
        names_in(tmp_path, ".png")
    with pytest.raises(PermissionError):
        list(files_below(tmp_path / "closed"))


def test_a_folder_where_a_file_is_to_be_written_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"metrics.json: a folder is where a file is to be"):
        weaktr.files.write_json(tmp_path / "metrics.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_what_others_have_not_written_to_for_a_day_is_abandoned(tmp_path):
    of_others = [tmp_path / f".{'a' * 10}{'b' * 6}{n:08x}{'0' * 8}.part" for n in (1, 2)]
    for path in of_others:
        path.touch()
    long_ago = time.time() - weaktr.files.ABANDONED_AFTER - 60
    os.utime(of_others[0], (long_ago, long_ago))
    weaktr.files.clear_abandoned(tmp_path)
    assert [path.exists() for path in of_others] == [False, True]


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    """Not the name under which it is begun; no remains are left."""
    path = tmp_path / "mask.png"
    for number, advice in [(errno.ENOSPC, "make room there"), (errno.EROFS, "take a folder that")]:
        for begun in (None, "begun"):
            with pytest.raises(OSError, match=advice) as caught, whole_file(path) as temporary:
                name = None if begun is None else str(temporary)
                raise OSError(number, os.strerror(number), name)
            assert caught.value.filename == str(path) and caught.value.errno == number
            assert os.strerror(number) in str(caught.value)
    with pytest.raises(OSError, match="elsewhere") as caught, whole_file(path):
        raise OSError(errno.ENOSPC, "full", "elsewhere")
    assert caught.value.filename == "elsewhere"
    assert not [*tmp_path.iterdir()]


def test_folders_behind_links_are_looked_into_once(tmp_path):
    for name in ("in/a/1.png", "far/2.png", "far/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    links = {"in/link": "../far", "in/twice": "../far", "in/b": "a", "in/up": "..",
             "far/back": "../in", "far/self": ".", "in/gone": "nowhere"}  # fmt: skip
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    found, plain = (
        sorted(path.relative_to(tmp_path / "in").as_posix() for path in files)
        for files in (files_below(tmp_path / "in", follow=True), files_below(tmp_path / "in"))
    )
    assert plain == ["a/1.png", "gone"]
    assert found == ["a/1.png", "gone", "link/2.png", "link/deep/3.png"]


def test_links_to_a_folder_and_to_one_in_it_both_count(tmp_path, caplog):
    """Whichever has the first name; of two links to one folder the second is told."""
    for name in ("cats/1.png", "cats/black/2.png", "photos/dogs/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    photos = tmp_path / "photos"

    def found() -> list[str]:
        files = files_below(photos, follow=True)
        return sorted(path.relative_to(photos).as_posix() for path in files)

    (photos / "black_cats").symlink_to("../cats/black")
    (photos / "cats").symlink_to("../cats")
    assert found() == ["black_cats/2.png", "cats/1.png", "dogs/3.png"]
    assert caplog.text == ""
    (tmp_path / "cats/round").symlink_to("..")
    (photos / "hounds").symlink_to("dogs")
    (photos / "kittens").symlink_to("../cats")
    for _ in range(2):  # which is told once
        assert found() == ["black_cats/2.png", "cats/1.png", "dogs/3.png"]
    (told,) = caplog.messages
    assert "passed over: 3 links to folders that are looked into anyway, or lie above" in told
    for name, place in [("cats/round", ""), ("hounds", "photos/dogs"), ("kittens", "cats")]:
        assert f"{name} -> {tmp_path / place}" in told


def test_csv_has_what_was_given():
    rows = [("a", "b"), ("one\rtwo", " c"), ('"d"', "e,f\n"), ("", "g"), ("\u2028", "é")]
    text = weaktr.files.csv_bytes([*rows, (None, 0.5)])
    lines = csv.reader(io.StringIO(text.decode(), newline=""), skipinitialspace=True)
    assert list(map(tuple, lines)) == [*rows, ("", "0.5")]
    assert text.startswith(b"a,b\n") and text.endswith(b",0.5\n")
