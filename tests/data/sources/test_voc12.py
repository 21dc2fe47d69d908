"""VOC 2012: roots, lists, labels from XML and from cls_labels.npy, masks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.trees import voc_tree, write_image, write_list, write_mask, write_xml
from weaktr.data import load_manifest
from weaktr.data.problems import DataError, Problem
from weaktr.data.sources.voc12 import voc12

CAT, PERSON, AEROPLANE, TVMONITOR = 7, 14, 0, 19


def test_any_of_three_roots(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    first = voc12(voc, "train")
    assert [sample.name for sample in first] == ["2007_000001", "2007_000002"]
    for root in (voc.parent, tmp_path):
        assert voc12(root, "train").samples == first.samples
    sample = first.samples[0]
    assert sample.image == voc / "JPEGImages/2007_000001.jpg"
    assert sample.mask == voc / "SegmentationClass/2007_000001.png"
    assert sample.source == f"{voc}/ImageSets/Segmentation/train.txt:1"
    assert (first.name, first.split, len(first.classes)) == ("voc12", "train", 20)


def test_labels_from_xml(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    labels = [sample.labels for sample in voc12(voc, "train")]
    assert labels == [(CAT, PERSON), (AEROPLANE, TVMONITOR)]
    assert voc12(voc, "train", difficult=False).samples[1].labels == (TVMONITOR,)
    assert voc12(voc, "val").samples[0].labels == ()


def test_images_without_annotation_have_unknown_labels(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    write_image(voc / "JPEGImages/2008_000001.jpg")
    write_list(voc / "ImageSets/Segmentation/test.txt", ["2008_000001"])
    (sample,) = voc12(voc, "test")
    assert sample.labels is None
    assert sample.mask is None


def test_labels_from_npy_come_first(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    np.save(voc / "cls_labels.npy", {"2007_000001": np.eye(20)[3]}, allow_pickle=True)
    labels = [sample.labels for sample in voc12(voc, "train")]
    assert labels == [(3,), (AEROPLANE, TVMONITOR)]  # the second is not in the file: XML
    (voc / "Annotations/2007_000002.xml").unlink()
    with pytest.raises(DataError, match=r"train\.txt:2\): holds no labels for 2007_000002"):
        voc12(voc, "train")


def test_npy_of_another_data_set(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    path = tmp_path / "coco.npy"
    np.save(path, {"2007_000001": np.ones(80)}, allow_pickle=True)
    with pytest.raises(DataError, match="expected 20 numbers an image, got 80"):
        voc12(voc, "train", cls_labels=path)


def test_npy_whose_names_are_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voc = voc_tree(tmp_path)
    path = voc / "cls_labels.npy"
    np.save(path, {"000000000009": np.eye(20)[3]}, allow_pickle=True)
    with pytest.raises(
        DataError, match=r"no labels for 2 of 2 images \(2007_000001, 2007_000002\)"
    ):
        voc12(voc, "train", cls_labels=path)
    assert [sample.labels for sample in voc12(voc, "train")] == [
        (CAT, PERSON),
        (AEROPLANE, TVMONITOR),
    ]
    (said,) = caplog.messages
    assert "but for 1 names such as 000000000009: theirs come from the XML files" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<svg/>", r"expected <annotation>, got <svg>"),
        ("<annotation>" * 3, "expected XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&d;</annotation>", "expected XML"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "expected XML.* as UTF-8"),
        ("<?xml version='1.0' encoding='big5'?><annotation/>", "expected XML.*; save it as UTF-8"),
        (
            "<annotation><object><name>cat</name><difficult>maybe</difficult></object></annotation>",
            "difficult of cat: expected 0 or 1",
        ),
    ],
)
def test_xml_that_is_no_annotation(tmp_path: Path, text: str, told: str) -> None:
    voc = voc_tree(tmp_path)
    (voc / "Annotations/2007_000001.xml").write_text(text)
    with pytest.raises(DataError, match=rf"2007_000001\.xml .*train\.txt:1\): {told}"):
        voc12(voc, "train")


@pytest.mark.parametrize(
    "put",
    [os.mkdir, os.mkfifo, lambda path: os.symlink("nothing", path)],
    ids=["folder", "pipe", "link"],
)
def test_annotations_that_are_no_files(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """An image that has none is one without labels; these are faults."""
    voc = voc_tree(tmp_path)
    path = voc / "Annotations/2007_000001.xml"
    path.unlink()
    assert voc12(voc, "train").samples[0].labels is None
    put(path)
    with pytest.raises(DataError, match=rf"{path} .*train\.txt:1\): expected a file, got a"):
        voc12(voc, "train")


@pytest.mark.parametrize("mark", ["true", "True", "1", "yes"])
def test_difficult_in_words(tmp_path: Path, mark: str) -> None:
    voc = voc_tree(tmp_path)
    file = voc / "Annotations/2007_000002.xml"
    file.write_text(file.read_text().replace("<difficult>1<", f"<difficult>{mark}<"))
    assert voc12(voc, "train", difficult=False).samples[1].labels == (TVMONITOR,)


@pytest.mark.parametrize("value", ["false", "no", 0, 1, None])
def test_flags_are_true_or_false(tmp_path: Path, value: object) -> None:
    voc = voc_tree(tmp_path)
    with pytest.raises(ValueError, match="difficult: expected true or false; got"):
        load_manifest("voc12", voc, "train", difficult=value)
    assert len(load_manifest("voc12", voc, "train", difficult=False)) == 2


def test_names_with_blanks_and_lines_that_are_no_names(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    write_image(voc / "JPEGImages/my photo.jpg")
    write_image(voc / "JPEGImages/my.jpg")
    lists = voc / "ImageSets/Segmentation"
    write_list(lists / "own.txt", ["my photo"])
    assert [sample.name for sample in voc12(voc, "own")] == ["my photo"]
    write_list(lists / "cat_train.txt", ["2007_000001 -1"])
    with pytest.raises(
        DataError, match=r"2007_000001 -1\.jpg .*cat_train\.txt:1\): file is missing"
    ):
        voc12(voc, "cat_train")
    write_list(lists / "twice.txt", ["2007_000001", "JPEGImages/2007_000001.jpg"])
    with pytest.raises(DataError, match=r"twice\.txt:2\): name '2007_000001' was already declared"):
        voc12(voc, "twice")


def test_augmented_masks_come_first(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    write_mask(voc / "SegmentationClassAug/2007_000001.png", [8])
    first, second = voc12(voc, "train")
    assert first.mask == voc / "SegmentationClassAug/2007_000001.png"
    assert second.mask is None
    other = voc12(voc, "train", masks=voc / "SegmentationClass")
    assert other.samples[1].mask == voc / "SegmentationClass/2007_000002.png"


def test_no_masks_at_all(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    (voc / "SegmentationClass").rename(voc / "gone")
    assert [sample.mask for sample in voc12(voc, "train")] == [None, None]


def test_lists_of_published_code(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    lines = [
        "/JPEGImages/2007_000002.jpg /SegmentationClass/2007_000003.png",
        "",
        "JPEGImages/2007_000001.jpg",
    ]
    write_list(voc / "ImageSets/Segmentation/trainaug.txt", lines)
    for split in ("train_aug", "trainaug"):
        first, second = voc12(voc, split)
        assert (first.name, first.labels) == ("2007_000002", (AEROPLANE, TVMONITOR))
        assert first.mask == voc / "SegmentationClass/2007_000003.png"
        assert second.mask == voc / "SegmentationClass/2007_000001.png"
        assert second.source.endswith("trainaug.txt:3")
    outside = write_list(tmp_path / "train_id.txt", ["2007_000003"])
    by_path = voc12(voc, str(outside))
    assert ([sample.name for sample in by_path], by_path.split) == (["2007_000003"], "train_id")


def test_all_faults_at_once(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    write_xml(voc / "Annotations/2007_000001.xml", [("cat", False), ("unicorn", False)])
    (voc / "Annotations/2007_000002.xml").write_text("<annotation>")
    (voc / "JPEGImages/2007_000002.jpg").unlink()
    with pytest.raises(DataError) as caught:
        voc12(voc, "train")
    text = str(caught.value)
    assert "3 problems" in text
    assert "train.txt:1): object 'unicorn' is none of the 20 VOC classes" in text
    assert "2007_000002.xml" in text
    assert "2007_000002.jpg" in text and "train.txt:2): file is missing" in text
    problems: list[Problem] = []
    manifest = voc12(voc, "train", problems=problems)
    assert manifest.samples[0].labels == (CAT,)
    assert len(problems) == 2  # the missing file is left to check()


def test_wrong_roots_and_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root: expected a folder"):
        voc12(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="JPEGImages"):
        voc12(tmp_path)
    voc = voc_tree(tmp_path)
    with pytest.raises(ValueError, match=r"\['train', 'val'\].*got 'training'"):
        voc12(voc, "training")
