"""COCO: directory layouts, the 80 and 90 numberings, masks drawn from outlines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.trees import (
    COCO_LABELS,
    SIZE,
    coco_json,
    square,
    write_image,
    write_list,
    write_mask,
)
from tests.photographs import COCO128
from weaktr.data.io import read_mask
from weaktr.data.problems import DataError, Problem
from weaktr.data.render import render_masks
from weaktr.data.sources.coco14 import coco14

IMAGES = [f"COCO_train2014_{number:012d}" for number in COCO_LABELS]


def msc(root: Path) -> None:
    for name in IMAGES:
        write_image(root / f"JPEGImages/train/{name}.jpg")
        write_mask(root / f"SegmentationClass/train/{name}.png", [44])
    coco_json(root / "annotations/instances_train2014.json")


def coco2014(root: Path) -> None:
    for name in IMAGES:
        write_image(root / f"train2014/{name}.jpg")
        write_mask(root / f"masks/train2014/{name.split('_')[-1]}.png", [44])
    coco_json(root / "annotations/instances_train2014.json")


def voc_format(root: Path) -> None:
    for number in COCO_LABELS:
        write_image(root / f"images/{number:012d}.jpg")
        write_mask(root / f"voc_format/class_labels/{number}.png", [44])
    write_image(root / f"images/{777:012d}.jpg")  # of another split
    coco_json(root / "annotations/instances_train2014.json")
    write_list(root / "voc_format/train.txt", [f"{number:012d}" for number in COCO_LABELS])


def plain(root: Path) -> None:
    for number in COCO_LABELS:
        write_image(root / f"images/{number:012d}.jpg")
        write_mask(root / f"masks/{number:012d}.png", [44])
    coco_json(root / "annotations/instances_train2017.json", prefix="")


LAYOUTS = pytest.mark.parametrize("layout", [msc, coco2014, voc_format, plain])


@LAYOUTS
def test_layouts(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    manifest = coco14(tmp_path, "train")
    assert [sample.labels for sample in manifest] == [(0, 43), (89,), ()]
    for sample, number in zip(manifest, COCO_LABELS, strict=True):
        assert sample.image.is_file()
        assert sample.name == sample.image.stem
        assert sample.name.endswith(f"{number:012d}")
        assert sample.mask is not None and sample.mask.is_file()
        assert sample.mask.stem.endswith(str(number))
        assert read_mask(sample, 91)[0, 0] == 44


@LAYOUTS
def test_80_classes(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    manifest = coco14(tmp_path, "train", ids=80)
    assert manifest.classes.num_labels == 81
    assert [sample.labels for sample in manifest] == [(0, 39), (79,), ()]
    assert manifest.classes.names[39] == "bottle"
    mask = read_mask(manifest.samples[0], 81)
    assert mask[0, 0] == 40  # stored as COCO id 44
    assert mask[0, 1] == 0
    already = coco14(tmp_path, "train", ids=80, mask_ids=80).samples[0]
    assert read_mask(already, 81)[0, 0] == 44  # stored as label 44: taken as it is


def test_unused_ids_in_masks_are_refused_with_80(tmp_path: Path) -> None:
    plain(tmp_path)
    manifest = coco14(tmp_path, "train", ids=80)
    assert manifest.samples[0].mask is not None
    write_mask(manifest.samples[0].mask, [1, 12, 255, 90])
    with pytest.raises(
        DataError, match=r"outside the classes: expected 0 and the 80 ids .* got 12"
    ):
        read_mask(manifest.samples[0], 81)


def test_lists_choose_images(tmp_path: Path) -> None:
    voc_format(tmp_path)
    write_list(tmp_path / "voc_format/train_2.txt", ["COCO_train2014_000000000030", "25"])
    chosen = coco14(tmp_path, "train_2")
    assert [sample.name for sample in chosen] == [f"{30:012d}", f"{25:012d}"]
    other = write_list(tmp_path / "names.txt", [f"{9:012d}.jpg", "000000004242"])
    with pytest.raises(DataError, match=r"names\.txt:2\): has no image 000000004242"):
        coco14(tmp_path, "train", names=other)
    with pytest.raises(ValueError, match=r"needs the list .*train_5000\.txt"):
        coco14(tmp_path, "train_5000")


@pytest.mark.parametrize(("length", "bottle"), [(90, 43), (80, 39)])
def test_cls_labels_where_there_is_no_json(tmp_path: Path, length: int, bottle: int) -> None:
    voc_format(tmp_path)
    (tmp_path / "annotations/instances_train2014.json").unlink()
    vectors = {f"{n:012d}": np.zeros(length, np.float32) for n in COCO_LABELS}
    vectors[f"{9:012d}"][[bottle, 0]] = 1
    np.save(tmp_path / "cls_labels.npy", vectors, allow_pickle=True)
    assert [sample.labels for sample in coco14(tmp_path)] == [(0, 43), (), ()]
    assert [sample.labels for sample in coco14(tmp_path, ids=80)] == [(0, 39), (), ()]
    del vectors[f"{25:012d}"]
    np.save(tmp_path / "cls_labels.npy", vectors, allow_pickle=True)
    with pytest.raises(DataError, match=r"train\.txt:2\): holds no labels for 000000000025"):
        coco14(tmp_path)


def test_categories_of_ones_own(tmp_path: Path) -> None:
    plain(tmp_path)
    categories = [{"id": 90, "name": "weed"}, {"id": 1, "name": "beet"}, {"id": 44, "name": "pot"}]
    coco_json(tmp_path / "annotations/instances_train2017.json", prefix="", categories=categories)
    manifest = coco14(tmp_path, "train", ids="json")
    assert manifest.name == "coco"
    assert manifest.classes.names == ("beet", "pot", "weed")
    assert [sample.labels for sample in manifest] == [(0, 1), (2,), ()]
    with pytest.raises(DataError, match=r"id 90 is 'weed'.*use ids='json'"):
        coco14(tmp_path, "train")


def test_crowds_count_as_labels(tmp_path: Path) -> None:
    plain(tmp_path)
    crowd = {"id": 1, "image_id": 30, "category_id": 1, "iscrowd": 1, "segmentation": []}
    path = tmp_path / "annotations/instances_train2017.json"
    coco_json(path, prefix="", annotations=[crowd])
    assert coco14(tmp_path).samples[2].labels == (0,)


def test_all_faults_at_once(tmp_path: Path) -> None:
    plain(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    annotations = [
        {"id": 1, "image_id": 9, "category_id": 91},
        {"id": 2, "image_id": 1234, "category_id": 1},
        {"id": 3, "image_id": 9, "category_id": 1},
    ]
    images = [{"id": 9, "file_name": f"{9:012d}.jpg"}, {"id": 5, "file_name": "../secret.jpg"}]
    coco_json(path, annotations=annotations, images=images)
    (tmp_path / f"images/{9:012d}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        coco14(tmp_path)
    text = str(caught.value)
    assert "4 problems" in text
    assert "(annotations[0]): category_id 91 is outside the class list" in text
    assert "(annotations[1]): image_id 1234 is no image" in text
    assert "leads out of the image folder: '../secret.jpg'" in text
    assert f"{path}: images[0]): file is missing" in text
    problems: list[Problem] = []
    assert [s.labels for s in coco14(tmp_path, problems=problems)] == [(0,)]
    assert sum(problem.level == "error" for problem in problems) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"categories": [{"id": 1}]}'])
def test_files_that_are_no_instances(tmp_path: Path, text: str) -> None:
    plain(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(text)
    with pytest.raises(DataError, match="expected COCO's instances JSON"):
        coco14(tmp_path)


def test_wrong_roots_and_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image folder"):
        coco14(tmp_path)
    write_image(tmp_path / "images/a.jpg")
    with pytest.raises(ValueError, match="instances_"):
        coco14(tmp_path)
    with pytest.raises(ValueError, match="ids, mask_ids"):
        coco14(tmp_path, ids=91)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids, mask_ids"):
        coco14(tmp_path, ids=90, mask_ids=80)


def own_data(root: Path, images: Sequence[str], masks: Sequence[str]) -> None:
    """Images of one class each and masks, in COCO's format."""
    for name in images:
        write_image(root / f"images/{name}")
    for name in masks:
        write_mask(root / f"masks/{name}", [1])
    entries = [{"id": k, "file_name": name} for k, name in enumerate(images)]
    notes = [{"image_id": k, "category_id": 1} for k in range(len(images))]
    kinds = [{"id": 1, "name": "beet"}]
    path = root / "annotations/instances_train2017.json"
    coco_json(path, images=entries, annotations=notes, categories=kinds)


def masks_of(root: Path) -> list[str | None]:
    return [s.mask and s.mask.name for s in coco14(root, "train", ids="json")]


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["cam1_0001.jpg"], ["cam2_0001.png"], [None]),
        (["cam1_0001.jpg"], ["cam2_0001.png", "cam1_0001.png"], ["cam1_0001.png"]),
        (["a 1.jpg"], ["1.png"], [None]),
        (["9.jpg"], ["000000000009.png", "9.png"], ["9.png"]),
        (["COCO_val2014_000000000009.jpg"], ["9.png"], ["9.png"]),
        (["IMG_9.jpg", "DSC_9.jpg"], ["IMG_9.png"], ["IMG_9.png", None]),
        (["9.jpg", "09.jpg"], ["09.png"], [None, "09.png"]),
        (["9.jpg", "09.jpg"], ["09.png", "009.png"], ["009.png", "09.png"]),
    ],
)
def test_masks_belong_to_images_by_name_or_by_cocos_own_number(
    tmp_path: Path, images: list[str], masks: list[str], expected: list[str | None]
) -> None:
    own_data(tmp_path, images, masks)
    assert masks_of(tmp_path) == expected


def test_images_and_masks_that_the_json_does_not_have(tmp_path: Path) -> None:
    own_data(tmp_path, ["a.jpg"], ["a.png", "b.png"])
    write_image(tmp_path / "images/c.jpg")
    problems: list[Problem] = []
    coco14(tmp_path, ids="json", problems=problems)
    told = {problem.file: problem for problem in problems if "has no image" in problem.message}
    assert set(told) == {f"{tmp_path}/images/c.jpg", f"{tmp_path}/masks/b.png"}
    assert {problem.level for problem in told.values()} == {"warning"}


def test_matches_by_number_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "weaktr")
    own_data(tmp_path, ["0009.jpg", "0010.jpg"], ["9.png", "10.png"])
    assert masks_of(tmp_path) == ["9.png", "10.png"]
    (said,) = caplog.messages
    assert said == "coco14: 2 masks are matched by COCO's number, such as '0009' by '9'"


def test_two_masks_with_the_number_of_an_image(tmp_path: Path) -> None:
    own_data(tmp_path, ["9.jpg"], ["09.png", "009.png"])
    with pytest.raises(DataError, match=r"images\[0\]\): '9' has the number of 009, 09: call one"):
        masks_of(tmp_path)


def test_two_images_that_a_line_may_mean(tmp_path: Path) -> None:
    own_data(tmp_path, ["09.jpg", "009.jpg"], [])
    names = write_list(tmp_path / "names.txt", ["9"])
    with pytest.raises(DataError, match=r"names\.txt:1\): '9' has the number of 09, 009"):
        coco14(tmp_path, ids="json", names=names)


def test_an_image_of_an_exact_name_is_no_other_by_its_number(tmp_path: Path) -> None:
    own_data(tmp_path, ["9.jpg", "09.jpg"], [])
    names = write_list(tmp_path / "names.txt", ["09", "images/9.jpg"])
    manifest = coco14(tmp_path, ids="json", names=names)
    assert [sample.name for sample in manifest] == ["09", "9"]
    (tmp_path / "images/9.jpg").unlink()
    with pytest.raises(DataError) as caught:
        coco14(tmp_path, ids="json")
    (fault,) = caught.value.problems
    assert (fault.file, fault.message) == (f"{tmp_path}/images/9.jpg", "file is missing")


@pytest.mark.parametrize(("stored", "lacking"), [(("9", "09"), ()), (("09",), ("images/9.jpg",))])
def test_labels_of_an_exact_name_are_no_others_by_their_number(
    tmp_path: Path, stored: Sequence[str], lacking: Sequence[str]
) -> None:
    vectors = {name: np.zeros(80, np.float32) for name in stored}
    vectors["09"][0] = 1
    np.save(tmp_path / "cls_labels.npy", vectors, allow_pickle=True)
    for name in ("9", "09"):
        write_image(tmp_path / f"images/{name}.jpg")
    write_list(tmp_path / "voc_format/train.txt", ["images/09.jpg", "images/9.jpg"])
    problems: list[Problem] = []
    manifest = coco14(tmp_path, problems=problems)
    assert [sample.labels for sample in manifest] == [(0,), ()][: len(stored)]
    assert [p.message for p in problems] == [f"holds no labels for {name}" for name in lacking]


def test_lists_of_paths(tmp_path: Path) -> None:
    own_data(tmp_path, ["a.jpg", "my b.jpg"], [])
    lines = ["/images/a.jpg /masks/a.png", "my b"]
    manifest = coco14(tmp_path, ids="json", names=write_list(tmp_path / "names.txt", lines))
    assert [sample.name for sample in manifest] == ["a", "my b"]


def test_names_and_ids_that_stand_twice(tmp_path: Path) -> None:
    own_data(tmp_path, ["a.jpg", "b.jpg", "b.png"], [])
    path = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["id"] = 0
    path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match=r"images\[1\]\): id 0 is also that of images\[0\]"):
        masks_of(tmp_path)
    content["images"][1]["id"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"name 'b' was already declared at .*images\[1\]"):
        masks_of(tmp_path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
class TestRenderMasks:
    """Outlines become class masks."""

    def write(self, path: Path, annotations: list[dict[str, object]]) -> Path:
        rows = [{"id": k, "image_id": 9, **row} for k, row in enumerate(annotations)]
        return coco_json(path, prefix="", annotations=rows)

    def drawn(self, tmp_path: Path, annotations: list[dict[str, object]], ids: int) -> np.ndarray:
        path = self.write(tmp_path / "i.json", annotations)
        written = render_masks(path, tmp_path / "out", ids=ids)  # type: ignore[arg-type]
        assert [file.name for file in written] == [f"{n:012d}.png" for n in COCO_LABELS]
        with Image.open(written[0]) as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]
            return np.array(image)

    def test_ids_and_size(self, tmp_path: Path) -> None:
        objects = [{"category_id": 44, "segmentation": square(2, 3, 4)}]
        mask = self.drawn(tmp_path, objects, 90)
        expected = np.zeros(SIZE, np.uint8)
        expected[3:7, 2:6] = 44
        np.testing.assert_array_equal(mask, expected)
        mask = self.drawn(tmp_path, objects, 80)
        assert set(np.unique(mask)) == {0, 40}

    @pytest.mark.parametrize("order", [1, -1])
    def test_small_objects_lie_on_top(self, tmp_path: Path, order: int) -> None:
        objects: list[dict[str, object]] = [
            {"category_id": 1, "segmentation": square(0, 0, 16)},
            {"category_id": 44, "segmentation": square(4, 4, 4)},
        ]
        mask = self.drawn(tmp_path, objects[::order], 90)
        assert (mask == 44).sum() == 16
        assert (mask == 1).sum() == 16 * 16 - 16

    def test_crowds_are_ignored_below_objects(self, tmp_path: Path) -> None:
        runs = {"size": list(SIZE), "counts": [0, SIZE[0] * 8, SIZE[0] * (SIZE[1] - 8)]}
        objects = [
            {"category_id": 1, "segmentation": square(0, 0, 4)},
            {"category_id": 1, "segmentation": runs, "iscrowd": 1},
        ]
        mask = self.drawn(tmp_path, objects, 90)
        assert (mask == 1).sum() == 16
        assert (mask == 255).sum() == SIZE[0] * 8 - 16
        assert not mask[:, 8:].any()

    def test_boxes_without_outline_give_no_mask(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "i.json", [{"category_id": 1, "bbox": [0, 0, 4, 4]}])
        written = render_masks(path, tmp_path / "out")
        assert [file.name for file in written] == [f"{n:012d}.png" for n in (25, 30)]

    def test_compressed_runs(self, tmp_path: Path) -> None:
        from pycocotools import mask as coco_mask

        inside = np.zeros(SIZE, np.uint8, order="F")
        inside[2:9, 5:7] = 1
        runs = coco_mask.encode(inside)
        segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
        mask = self.drawn(tmp_path, [{"category_id": 13, "segmentation": segmentation}], 80)
        np.testing.assert_array_equal(mask, 12 * inside)

    @pytest.mark.parametrize("outline", [{"x": 1}, [[1, 2]], {"size": [3, 3], "counts": [9]}])
    def test_broken_outlines_are_named(self, tmp_path: Path, outline: object) -> None:
        path = self.write(tmp_path / "i.json", [{"category_id": 1, "segmentation": outline}])
        with pytest.raises(DataError, match="annotation 0 of image 9"):
            render_masks(path, tmp_path / "out")


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"the photographs of {COCO128.name} are not here")
class TestPhotographs:
    """128 real photographs, 100 of them with masks."""

    def test_manifest(self) -> None:
        manifest = coco14(COCO128, "train")
        assert len(manifest) == 128
        assert sum(sample.mask is not None for sample in manifest) == 100
        assert sum(sample.labels == () for sample in manifest) == 2
        content = json.loads((COCO128 / "annotations/instances_train2017.json").read_text())
        expected = {(row["image_id"], row["category_id"] - 1) for row in content["annotations"]}
        assert {(int(s.name), k) for s in manifest for k in s.labels or ()} == expected

    @pytest.mark.parametrize("ids", [90, 80])
    def test_masks_show_what_the_labels_say(self, ids: int) -> None:
        manifest = coco14(COCO128, "train", ids=ids)  # type: ignore[arg-type]
        for sample in manifest.samples[:40]:
            if sample.mask is not None:
                shown = set(np.unique(read_mask(sample, ids + 1)).tolist()) - {0, 255}
                assert {label - 1 for label in shown} <= set(sample.labels or ())

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
    def test_drawn_masks_agree_with_the_given(self, tmp_path: Path) -> None:
        written = render_masks(COCO128 / "annotations/instances_train2017.json", tmp_path)
        assert len(written) == 100
        shares = []
        for path in written:
            with Image.open(path) as ours, Image.open(COCO128 / "masks" / path.name) as given:
                shares.append(float((np.array(ours) == np.array(given)).mean()))
        assert np.mean(shares) > 0.98
