"""``weaktr data prepare voc12`` on little archives in the official layouts."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import io

from tests.data.prepare import official_archives as little
from tests.data.prepare.loopback import Site, serving
from tests.data.trees import write_list
from weaktr import cli
from weaktr.data import DataError, load_manifest
from weaktr.data.prepare import (
    Archive,
    ArchiveError,
    CocoFacts,
    Patience,
    Prepared,
    VocFacts,
    official,
    prepare_voc12,
)
from weaktr.data.prepare.matlab import read_mat
from weaktr.data.prepare.unpack import Member
from weaktr.progress import console

QUICK = Patience(timeout=2.0, attempts=3, pause=0.01)
DATA, SBD = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
#: Facts of the little archives where nothing is downloaded.
FACTS = VocFacts(Archive(DATA, ("http://x/d",)), Archive(SBD, ("http://x/s",)), little.VOC_COUNTS)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site({DATA: little.voc_tar(), SBD: little.sbd_tgz()})) as started:
        yield started


@pytest.fixture
def facts(site: Site) -> VocFacts:
    return VocFacts(site.archive(DATA), site.archive(SBD), little.VOC_COUNTS)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def mask(root: Path, name: str) -> np.ndarray:
    return np.array(Image.open(root / f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png"))


def counts(root: Path) -> dict[str, tuple[int, int, int, int]]:
    content = json.loads((root / "manifest.json").read_text())
    keys = ("images", "expected", "with_labels", "with_mask")
    return {split["name"]: tuple(split[key] for key in keys) for split in content["splits"]}


def check_second_run(
    prepare: Callable[..., Prepared], site: Site, facts: VocFacts | CocoFacts, root: Path
) -> None:
    """A second run writes nothing and asks the site for nothing."""
    prepare(root, fetch=True, facts=facts, patience=QUICK)
    before, asked = snapshot(root), len(site.asked)
    again = prepare(root, fetch=True, facts=facts, patience=QUICK)
    assert again.complete and not again.changed
    assert snapshot(root) == before
    assert len(site.asked) == asked


COMPLETE = {"train": (2, 2, 2, 2), "train_aug": (4, 4, 4, 4), "val": (1, 1, 1, 1)}


def test_from_nothing(site: Site, facts: VocFacts, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(ValueError, match="add --download"):
        prepare_voc12(root, facts=facts)
    result = prepare_voc12(root, fetch=True, facts=facts, patience=QUICK)
    assert result.complete and result.changed and not result.missing
    assert counts(root) == COMPLETE
    for name in ("2007_000032", "2007_000033"):  # VOC's own mask, not SBD's
        np.testing.assert_array_equal(mask(root, name), little.labels(little.OBJECTS[name][1]))
    np.testing.assert_array_equal(mask(root, "2008_000002"), np.minimum(little.labels(20), 20))
    train_aug = load_manifest("voc12", root, "train_aug")
    assert [sample.name for sample in train_aug] == list(little.TRAIN_AUG)
    assert [sample.labels for sample in train_aug] == [(0,), (19,), (19,), (18,)]
    saved = load_manifest("manifest", root / "manifests/train_aug.json")
    assert [sample.mask for sample in saved] == [sample.mask for sample in train_aug]


def test_second_run_changes_nothing(site: Site, facts: VocFacts, tmp_path: Path) -> None:
    check_second_run(prepare_voc12, site, facts, tmp_path)
    for name in (DATA, SBD):  # nothing depends on the archives any more
        (tmp_path / "downloads" / name).unlink()
    assert not prepare_voc12(tmp_path, fetch=True, facts=facts, patience=QUICK).changed


@pytest.mark.parametrize(
    "lost",
    ["JPEGImages/2008_000003.jpg", "Annotations/2008_000002.xml",
     "SegmentationClassAug/2008_000003.png", "ImageSets/Segmentation/train_aug.txt",
     "ImageSets/Segmentation/val.txt", "SegmentationClassAug", "JPEGImages"],
)  # fmt: skip
def test_goes_on_after_an_interruption(
    site: Site, facts: VocFacts, tmp_path: Path, lost: str
) -> None:
    prepare_voc12(tmp_path, fetch=True, facts=facts, patience=QUICK)
    asked = len(site.asked)
    path = tmp_path / "VOCdevkit/VOC2012" / lost
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    result = prepare_voc12(tmp_path, facts=facts)
    assert result.complete and result.changed and path.exists()
    assert len(site.asked) == asked  # the archives are still there
    assert not prepare_voc12(tmp_path, facts=facts).changed


def test_goes_on_with_a_half_download(site: Site, facts: VocFacts, tmp_path: Path) -> None:
    half = len(site.files[DATA]) // 2
    little.write(tmp_path / "downloads", {f"{DATA}.part": site.files[DATA][:half]})
    assert prepare_voc12(tmp_path, fetch=True, facts=facts, patience=QUICK).complete
    assert site.asked[0] == f"bytes={half}-"


def test_interrupted_while_unpacking(
    site: Site, facts: VocFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = Member.copy_to, []

    def stop_at_twelve(member: Member, path: Path) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        written.append(member.name)
        original(member, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Member, "copy_to", stop_at_twelve)
        prepare_voc12(tmp_path, fetch=True, facts=facts, patience=QUICK)
    seen = [tmp_path / name for name in written]
    times = [file.stat().st_mtime_ns for file in seen]
    left = little.left_by_a_killed_process(seen[0].parent)
    assert prepare_voc12(tmp_path, fetch=True, facts=facts, patience=QUICK).missing == []
    assert [file.stat().st_mtime_ns for file in seen] == times
    assert not left.exists()


def test_archives_that_are_there(tmp_path: Path) -> None:
    shelf = little.write(tmp_path / "shelf", {DATA: little.voc_tar(), SBD: little.sbd_tgz()})
    root = tmp_path / "data"
    root.mkdir()
    assert prepare_voc12(root, archives=shelf, facts=FACTS).complete
    assert counts(root) == COMPLETE
    with pytest.raises(ValueError, match="archives: expected a folder"):
        prepare_voc12(root, archives=tmp_path / "nowhere", facts=FACTS)


@pytest.mark.parametrize("form", ["folder", "zip", "flat zip", "found zip"])
def test_augmented_masks_given(tmp_path: Path, form: str) -> None:
    root = little.write(tmp_path / "data", {DATA: little.voc_tar()})
    nested = {f"SegmentationClassAug/{name}": png for name, png in little.augmented().items()}
    given: Path | None = tmp_path / "masks.zip"
    if form == "folder":
        given = little.write(tmp_path / "given", nested) / "SegmentationClassAug"
    elif form == "zip":
        little.write(tmp_path, {"masks.zip": little.zipped(nested)})
    elif form == "flat zip":
        little.write(tmp_path, {"masks.zip": little.zipped(little.augmented())})
    else:
        given = None
        little.write(root, {"SegmentationClassAug.zip": little.zipped(nested)})
    result = prepare_voc12(root, sbd_masks=given, facts=FACTS)
    assert result.complete and counts(root) == COMPLETE
    np.testing.assert_array_equal(mask(root, "2008_000003"), little.labels(19))
    assert not prepare_voc12(root, sbd_masks=given, facts=FACTS).changed


def test_sbd_unpacked(tmp_path: Path) -> None:
    root = little.write(tmp_path, {DATA: little.voc_tar(), SBD: little.sbd_tgz()})
    with tarfile.open(root / SBD) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(root)
    (root / SBD).unlink()
    assert prepare_voc12(root, facts=FACTS).complete


def test_everything_is_there_already(tmp_path: Path) -> None:
    little.write(tmp_path, {DATA: little.voc_tar()})
    with tarfile.open(tmp_path / DATA) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(tmp_path / "kept")
    voc = tmp_path / "kept/VOCdevkit/VOC2012"
    little.write(voc / "SegmentationClassAug", little.augmented())
    paths = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in little.TRAIN_AUG]
    write_list(voc / "ImageSets/Segmentation/trainaug.txt", paths)
    before = snapshot(voc)
    for root in (voc, voc.parent, voc.parent.parent):
        assert prepare_voc12(root, facts=FACTS).complete
        assert counts(root) == COMPLETE
    left = {"manifest", "origins"}
    new = {Path(file).stem for file in snapshot(voc).keys() - before.keys()}
    assert new - left <= {"train", "train_aug", "val"}
    assert {file: snapshot(voc)[file] for file in before} == before


def test_what_is_missing(tmp_path: Path) -> None:
    result = prepare_voc12(tmp_path, facts=FACTS)
    (nothing,) = result.missing
    assert "train.txt" in nothing.what and "http://x/d" in nothing.remedy
    little.write(tmp_path, {DATA: little.voc_tar()})
    (no_sbd,) = prepare_voc12(tmp_path, facts=FACTS).missing
    assert no_sbd.needed and "train_aug: no list" in no_sbd.what
    assert "http://x/s" in no_sbd.remedy and "--sbd" in no_sbd.remedy
    voc = tmp_path / "VOCdevkit/VOC2012"
    write_list(voc / "ImageSets/Segmentation/train_aug.txt", little.TRAIN_AUG)
    result = prepare_voc12(tmp_path, facts=FACTS)
    (no_masks,) = result.missing
    assert result.complete and not no_masks.needed
    assert no_masks.what == "train_aug: 2 masks, which only scoring needs"
    assert counts(tmp_path)["train"] == (2, 2, 2, 2)
    (tmp_path / DATA).unlink()
    (voc / "JPEGImages/2007_000033.jpg").unlink()
    (voc / "Annotations/2008_000002.xml").unlink()
    said = [missing.what for missing in prepare_voc12(tmp_path, facts=FACTS).missing]
    assert "val: 1 images (2007_000033)" in said
    assert "train_aug: 1 images (2008_000002) without labels" in said
    saved = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["what"] for entry in saved["missing"]] == said
    assert not saved["complete"]


def test_wrong_counts_are_said(tmp_path: Path) -> None:
    little.write(tmp_path, {DATA: little.voc_tar(), SBD: little.sbd_tgz()})
    other = replace(FACTS, counts={"train": 3, "train_aug": 5, "val": 1})
    said = [missing.what for missing in prepare_voc12(tmp_path, facts=other).missing]
    assert "train: 2 images in its list, expected 3" in said
    assert any("has 4 masks outside val, expected 5" in what for what in said)
    assert not (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt").exists()


def test_labels_from_npy(tmp_path: Path) -> None:
    little.write(tmp_path, {DATA: little.voc_tar(), SBD: little.sbd_tgz()})
    content: dict[str, Any] = {name: np.eye(20)[4] for name in little.OBJECTS}
    np.save(tmp_path / "mine.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    result = prepare_voc12(tmp_path, cls_labels=tmp_path / "mine.npy", facts=FACTS)
    assert result.complete and result.origins["labels"].endswith("mine.npy")
    saved = load_manifest("manifest", tmp_path / "manifests/val.json")
    assert saved.samples[0].labels == (4,)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    little.write(tmp_path, {DATA: little.voc_tar()[:5000]})
    sized = replace(FACTS, data=replace(FACTS.data, size=len(little.voc_tar())))
    with pytest.raises(ArchiveError, match=r"expected \d+ bytes, got 5000.*--download"):
        prepare_voc12(tmp_path, facts=sized)
    summed = replace(FACTS, data=replace(FACTS.data, md5="0" * 32))
    with pytest.raises(ArchiveError, match="expected MD5 0000"):
        prepare_voc12(tmp_path, facts=summed)


def test_masks_that_are_none(tmp_path: Path) -> None:
    root = little.write(tmp_path / "data", {DATA: little.voc_tar()})
    coloured = np.zeros((4, 4, 3), np.uint8)
    bad = {"c.zip": little.zipped({"2008_000002.png": little.png(coloured)}),
           "m.zip": little.zipped({"cls/2008_000002.mat": b"no such thing"}),
           "l.zip": little.zipped({"cls/2008_000002.mat": little.sbd_mat(little.labels(21))}),
           "e.zip": little.zipped({"readme.txt": b""})}  # fmt: skip
    little.write(tmp_path, bad)
    with pytest.raises(DataError, match="one channel"):
        prepare_voc12(root, sbd_masks=tmp_path / "c.zip", facts=FACTS)
    with pytest.raises(ValueError, match=r"2008_000002\.mat: expected a MATLAB file"):
        prepare_voc12(root, sbd_masks=tmp_path / "m.zip", facts=FACTS)
    with pytest.raises(ValueError, match=r"expected labels 0\.\.20"):
        prepare_voc12(root, sbd_masks=tmp_path / "l.zip", facts=FACTS)
    with pytest.raises(ArchiveError, match="found neither"):
        prepare_voc12(root, sbd_masks=tmp_path / "e.zip", facts=FACTS)
    with pytest.raises(ValueError, match="does not exist"):
        prepare_voc12(root, sbd_masks=tmp_path / "n.zip", facts=FACTS)
    assert list((root / "VOCdevkit/VOC2012/SegmentationClassAug").iterdir()) == []


@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_files(compressed: bool) -> None:
    truth = np.arange(15, dtype=np.uint8).reshape(3, 5)
    read = read_mat(little.sbd_mat(truth, compressed=compressed))
    np.testing.assert_array_equal(read["GTcls"]["Segmentation"], truth)
    assert read["GTcls"]["Boundaries"] is None
    assert read["GTcls"]["CategoriesPresent"].tolist() == [[7]]


def test_matlab_files_that_are_cut_off() -> None:
    content = little.sbd_mat(little.labels(3), compressed=False)
    for length in (0, 100, 128, 140, 400, len(content) - 30):
        if length == 128:
            assert read_mat(content[:length]) == {}
            continue
        with pytest.raises(ValueError, match="MATLAB file"):
            read_mat(content[:length])
    packed = little.sbd_mat(little.labels(3))
    with pytest.raises(ValueError, match=r"cut off|damaged"):
        read_mat(packed[:-8])


def test_matlab_files_agree_with_scipy(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 21, (37, 50)).astype(np.uint8)
    boundaries = np.empty((2, 1), object)
    boundaries[:, 0] = [np.eye(3), np.ones((1, 2))]
    fields = {"Boundaries": boundaries, "Segmentation": truth, "CategoriesPresent": np.uint8([[2]])}
    for compressed in (True, False):
        path = tmp_path / "a.mat"
        content = {"GTcls": fields, "x": np.arange(6.0).reshape(2, 3), "t": "text"}
        io.savemat(path, content, do_compression=compressed)
        read = read_mat(path.read_bytes())
        np.testing.assert_array_equal(read["GTcls"]["Segmentation"], truth)
        np.testing.assert_array_equal(read["x"], content["x"])
        assert read["t"] is None and read["GTcls"]["Boundaries"] is None
    path.write_bytes(little.sbd_mat(truth))
    theirs = io.loadmat(path, mat_dtype=True)["GTcls"]["Segmentation"][0, 0]
    np.testing.assert_array_equal(theirs, truth)


def test_command(
    site: Site, facts: VocFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "VOC12", facts)
    command = ["data", "prepare", "voc12", "--root", str(tmp_path)]
    with console.capture() as capture:
        assert cli.main(command) == 1
        assert cli.main([*command, "--download"]) == 0
        assert cli.main(command) == 0
    assert counts(tmp_path) == COMPLETE
    text = capture.get()
    assert "add --download" in text and "train_aug" in text
    assert text.rstrip().endswith("complete, nothing had to be changed")
    assert cli.main([*command, "--coco-ids", "80"]) == 2
    assert cli.main(["data", "prepare", "voc12"]) == 2
    assert cli.main(["data", "prepare", "folder", "--root", str(tmp_path)]) == 2
