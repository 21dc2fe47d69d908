"""Downloads over loopback: slow, cut off, stalled, changed, wrong, missing."""

from __future__ import annotations

import hashlib
import os
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from urllib.request import Request

import numpy as np
import pytest

from tests.data.prepare.loopback import Site, serving
from weaktr.data.prepare import Archive, ArchiveError, Patience
from weaktr.data.prepare.download import _WebOnly, download
from weaktr.data.prepare.official import COCO14, VOC12

QUICK = Patience(timeout=0.5, attempts=3, pause=0.01)
CONTENT = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site({"a.zip": CONTENT})) as started:
        yield started


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_whole_file(site: Site, tmp_path: Path) -> None:
    path = download(site.archive("a.zip"), tmp_path / "new", QUICK)
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == ["a.zip"]
    assert site.asked == [None]


def test_cut_off_connections_are_continued(site: Site, tmp_path: Path) -> None:
    site.cut_after = 70_000
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=70000-", "bytes=140000-"]


def test_slow_server_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.pause = 0.06  # in all 0.8 s, longer than the time-out of 0.5 s
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert len(site.asked) == 1


def test_two_processes_download_once(site: Site, tmp_path: Path) -> None:
    site.pause = 0.02
    archive = site.archive("a.zip")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: download(archive, tmp_path, QUICK), range(2)))
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert site.asked == [None] and files(tmp_path) == ["a.zip"]


def test_silent_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.stall_once = True
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-"]


def test_a_later_run_goes_on(site: Site, tmp_path: Path) -> None:
    site.cut_after = 50_000
    with pytest.raises(ArchiveError, match="503"):
        broken_off(site, tmp_path)
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:50_000]
    site.status, site.cut_after = None, None
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked[-1] == "bytes=50000-"
    assert files(tmp_path) == ["a.zip"]


def broken_off(site: Site, folder: Path) -> None:
    """A download that gets one answer, and then only 503."""
    (folder / "a.zip.part").write_bytes(CONTENT[:50_000])
    site.status = 503
    download(site.archive("a.zip"), folder, QUICK)


def test_a_changed_file_is_not_joined_to_the_old_part(site: Site, tmp_path: Path) -> None:
    site.cut_after = 50_000
    site.ranges = False  # each answer starts anew and ends early: nothing new after the first
    with pytest.raises(ArchiveError, match="brought nothing"):
        download(site.archive("a.zip"), tmp_path, QUICK)
    assert (tmp_path / "a.zip.part").stat().st_size == 50_000
    site.cut_after, site.ranges, site.etag = None, True, '"2"'
    site.files["a.zip"] = CONTENT[::-1]
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT[::-1]
    assert site.asked[-1] == "bytes=50000-"  # asked for the rest, but with If-Range "1"


def test_server_without_ranges(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    site.ranges = False
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT


def test_passing_errors_are_retried(site: Site, tmp_path: Path) -> None:
    site.errors_first = 2
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert len(site.asked) == 3


def test_wrong_checksum(site: Site, tmp_path: Path) -> None:
    archive = site.archive("a.zip", md5="0" * 32)
    checksum = hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(ArchiveError, match=f"expected MD5 {'0' * 32}, got {checksum}"):
        download(archive, tmp_path, QUICK)
    assert files(tmp_path) == []


def test_wrong_size_is_refused_before_it_comes(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="has 200000 bytes, expected 200001"):
        download(site.archive("a.zip", size=200_001), tmp_path, QUICK)
    assert files(tmp_path) == []


def test_missing_on_the_server(site: Site, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{site.port}/b.zip"
    with pytest.raises(ArchiveError, match=r"b\.zip: HTTP 404.*put the file into"):
        download(Archive("b.zip", (url,)), tmp_path, QUICK)
    assert site.asked == [None]  # not asked twice
    second = Archive("a.zip", (url, site.archive("a.zip").urls[0]), len(CONTENT))
    assert download(second, tmp_path, QUICK).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_what_a_server_says_is_cut(site: Site, tmp_path: Path, status: int) -> None:
    site.status, site.reason = status, "go\x1b[31m away " * 4000
    with pytest.raises(ArchiveError, match=rf"HTTP {status} go\\x1b\[31m away") as caught:
        download(site.archive("a.zip"), tmp_path, QUICK)
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_size_only_where_no_checksum_is_known(site: Site, tmp_path: Path) -> None:
    archive = site.archive("a.zip", md5=None, size=None)
    site.cut_after = 120_000  # what is told by the server is what must come
    assert download(archive, tmp_path, QUICK).read_bytes() == CONTENT


def test_too_long_a_part_is_dropped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"x" * 200_001)
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == [None]


def test_a_whole_part_is_only_verified(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == []


def test_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ArchiveError, match="make room"):
        download(site.archive("a.zip"), tmp_path, QUICK)


@pytest.mark.parametrize(
    ("site_of_first", "reason"),
    [
        ({"a.zip": CONTENT[::-1]}, "expected MD5"),
        ({"a.zip": CONTENT + b"x"}, "has 200001 bytes, expected 200000"),
        ({"a.zip": CONTENT[:-1]}, "has 199999 bytes, expected 200000"),
    ],
)
def test_wrong_bytes_lead_to_the_next_address(
    site: Site, tmp_path: Path, site_of_first: dict[str, bytes], reason: str
) -> None:
    with serving(Site(site_of_first)) as first:
        wrong, right = first.archive("a.zip").urls[0], site.archive("a.zip")
        both = Archive("a.zip", (wrong, right.urls[0]), right.size, right.md5)
        assert download(both, tmp_path, QUICK).read_bytes() == CONTENT
        (tmp_path / "a.zip").unlink()
        with pytest.raises(ArchiveError, match=reason):
            download(Archive("a.zip", (wrong,), right.size, right.md5), tmp_path, QUICK)
    assert files(tmp_path) == []


def test_a_part_of_elsewhere_that_does_not_fit_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"x" * 50_000)  # of the right length, of another file
    assert download(site.archive("a.zip"), tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == ["bytes=50000-", None]


@pytest.mark.parametrize("md5", ["right", None])
def test_no_more_is_taken_than_the_file_has(site: Site, tmp_path: Path, md5: str | None) -> None:
    archive = site.archive("a.zip", md5=md5)
    site.tells_size = False
    assert download(archive, tmp_path, QUICK).read_bytes() == CONTENT
    (tmp_path / "a.zip").unlink()
    site.files["a.zip"] = CONTENT + bytes(10_000_000)
    with pytest.raises(ArchiveError, match="sends more than the expected 200000 bytes"):
        download(archive, tmp_path, QUICK)
    assert files(tmp_path) == []


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1:9/a", "data:,a"])
def test_redirects_are_followed_within_the_web(site: Site, tmp_path: Path, address: str) -> None:
    archive = site.archive("a.zip")
    site.sends_to = address
    with pytest.raises(ArchiveError, match=r"address of http or https|is not allowed"):
        download(archive, tmp_path, QUICK)
    assert files(tmp_path) == [] and site.asked == [None]  # not asked twice
    with serving(Site({"a.zip": CONTENT})) as other:
        site.sends_to = other.archive("a.zip").urls[0]
        assert download(archive, tmp_path, QUICK).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1",
        "http://../x",
        f"http://{'a' * 70}.com/",
        "http://127.0.0.1:99999999/x",
        "http://127.0.0.1:x/",
        "http:///x",
        "http://[v1.a]:80x/",
        "",
    ],
)
def test_addresses_that_are_none(site: Site, tmp_path: Path, address: str) -> None:
    with serving(Site({"a.zip": CONTENT}, sends_to=address)) as first:
        wrong, right = first.archive("a.zip").urls[0], site.archive("a.zip")
        for url in (wrong, address):
            both = Archive("a.zip", (url, *right.urls), right.size, right.md5)
            assert download(both, tmp_path, QUICK).read_bytes() == CONTENT
            (tmp_path / "a.zip").unlink()
            with pytest.raises(ArchiveError, match=r"^cannot download a\.zip: ") as caught:
                download(Archive("a.zip", (url,)), tmp_path, QUICK)
            assert url in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == []


def test_no_redirect_from_https_to_http() -> None:
    asked, headers = Request("https://a.org/x"), Message()
    with pytest.raises(Exception, match=r"expected an address of https, got 'http://a\.org/y'"):
        _WebOnly().redirect_request(asked, None, 302, "", headers, "http://a.org/y")
    assert _WebOnly().redirect_request(asked, None, 302, "", headers, "https://a.org/y")
    asked = Request("http://a.org/x")
    assert _WebOnly().redirect_request(asked, None, 302, "", headers, "https://a.org/y")


def test_a_file_of_unknown_size_has_an_end(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weaktr.data.prepare.download.MOST_BYTES", len(CONTENT))
    archive = site.archive("a.zip", md5=None, size=None)
    site.tells_size = False
    assert download(archive, tmp_path, QUICK).read_bytes() == CONTENT
    (tmp_path / "a.zip").unlink()
    monkeypatch.setattr("weaktr.data.prepare.download.MOST_BYTES", len(CONTENT) - 1)
    for tells_size, said in ((False, "tells no size and sends more"), (True, "has 200000 bytes")):
        site.tells_size = tells_size
        with pytest.raises(ArchiveError, match=f"{said}, expected 27021147426 at most, twice"):
            download(archive, tmp_path, QUICK)
    assert files(tmp_path) == []


@pytest.mark.parametrize("note", ["[]", "{", '{"url": "URL", "version": 7}', "[" * 100_000])
def test_damaged_notes_are_no_notes(site: Site, tmp_path: Path, note: str) -> None:
    archive = site.archive("a.zip")
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:50_000])
    (tmp_path / "a.zip.part.json").write_text(note.replace("URL", archive.urls[0]))
    assert download(archive, tmp_path, QUICK).read_bytes() == CONTENT
    assert site.asked == ["bytes=50000-"]


def test_other_schemes_and_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="http or https"):
        download(Archive("a", ("file:///etc/hostname",)), tmp_path, QUICK)
    with pytest.raises(ArchiveError, match="3 attempts in a row"):
        download(Archive("a", ("http://127.0.0.1:9/a",)), tmp_path, QUICK)


def test_official_table() -> None:
    archives = [VOC12.data, VOC12.sbd, COCO14.annotations, *COCO14.images.values()]
    assert len({archive.md5 for archive in archives}) == 5
    for archive in archives:
        assert archive.size is not None and archive.size > 200e6
        assert archive.md5 is not None and len(bytes.fromhex(archive.md5)) == 16
        assert all(url.endswith(f"/{archive.name}") for url in archive.urls)
    assert VOC12.counts == {"train": 1464, "train_aug": 10582, "val": 1449}
    assert COCO14.counts == {"train": 82081, "val": 40137}
