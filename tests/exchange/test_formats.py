"""Every format read back by its own reader: the same mask, pixel by pixel where it can be."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.exchange.folders import HOSTILE, difficult, exported, sources_of
from weaktr.data import Classes
from weaktr.data.classes import MAX_CLASSES
from weaktr.exchange import FORMATS
from weaktr.exchange.items import TINY

THREE = Classes(("cat", "dog", "bird"))
MANY = Classes((*HOSTILE, *(f"class {k}" for k in range(MAX_CLASSES - len(HOSTILE)))))
#: Formats with instances, which have no ignored pixels.
INSTANCES = ("coco", "yolo-seg", "labelme", "cvat", "label-studio")


def without_ignored(mask):
    return np.where(mask == 255, 0, mask)


def all_labels():
    """A mask of every label that there may be, each in a single pixel and in a block."""
    blocks = np.arange(255, dtype=np.uint8).reshape(15, 17).repeat(3, 0).repeat(3, 1)
    singles = np.zeros((4, 51 * 2), np.uint8)
    singles[1, ::2] = np.arange(1, 52)
    return np.concatenate((blocks, singles[:, :51]))


# ---- readers: the mask of the photograph `file`, uint8 [H, W] ---------------------------------


def read_coco(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    coco, mask = COCO(out / "annotations.json"), np.zeros(size, np.uint8)
    assert [coco.cats[k + 1]["name"] for k in range(len(classes))] == list(classes.names)
    (image,) = (image for image in coco.imgs.values() if image["file_name"] == file)
    assert (image["height"], image["width"]) == size
    for one in coco.imgToAnns[image["id"]]:
        inside = coco.annToMask(one).astype(bool)
        if isinstance(one["segmentation"], dict):
            assert one["area"] == coco_mask.area(one["segmentation"]) == inside.sum()
            assert one["bbox"] == coco_mask.toBbox(one["segmentation"]).tolist()
        mask[inside] = one["category_id"]
    return mask


def read_yolo(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    """As ultralytics does: coordinates cut down to whole pixels, filled by OpenCV."""
    cv2 = pytest.importorskip("cv2", reason="the reader of polygons is OpenCV's")
    description = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert description["names"] == dict(enumerate(classes.names))
    mask = np.zeros(size, np.uint8)
    for line in (out / "labels" / Path(file).with_suffix(".txt")).read_text().splitlines():
        index, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        assert points.min() >= 0 and points.max() <= 1 and len(points) >= 3
        polygon = (points * size[::-1]).astype(np.int32)
        cv2.fillPoly(mask, [polygon], int(index) + 1)
    return mask


def read_labelme(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    content = json.loads((out / "images" / Path(file).with_suffix(".json")).read_text())
    assert (content["imageHeight"], content["imageWidth"]) == size
    assert content["imagePath"] == Path(file).name
    mask = np.zeros(size, np.uint8)
    for shape in content["shapes"]:
        inside = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        (left, top), (right, bottom) = shape["points"]
        box = mask[top : bottom + 1, left : right + 1]
        box[inside.astype(bool)] = classes.names.index(shape["label"]) + 1
    return mask


def read_cvat(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    root = ElementTree.parse(out / "annotations.xml").getroot()
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == list(
        classes.names
    )
    (image,) = (image for image in root.iterfind("image") if image.get("name") == file)
    assert (int(image.get("height")), int(image.get("width"))) == size
    mask = np.zeros(size, np.uint8)
    for one in image.iterfind("mask"):
        left, top, width, height = (int(one.get(k)) for k in ("left", "top", "width", "height"))
        runs = [int(count) for count in one.get("rle").split(",")]
        inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width).astype(bool)
        label = classes.names.index(one.get("label")) + 1
        mask[top : top + height, left : left + width][inside] = label
    return mask


def task_of(out: Path, file: str) -> dict:
    ends = (f"images/{file}",)
    tasks = json.loads((out / "tasks.json").read_text())
    (task,) = (task for task in tasks if unquote(task["data"]["image"]).endswith(ends))
    return task


def unpacked(content: list[int]) -> np.ndarray:
    """The values of ``rle-pack``, read bit by bit as its documentation has it."""
    bits, at = "".join(f"{byte:08b}" for byte in content), 0

    def number(width: int) -> int:
        nonlocal at
        at += width
        return int(bits[at - width : at], 2)

    count, width = number(32), number(5) + 1
    widths, values = [number(4) + 1 for _ in range(4)], []
    while len(values) < count:
        is_run, length = number(1), number(widths[number(2)]) + 1
        values += [number(width)] * length if is_run else [number(width) for _ in range(length)]
    return np.array(values, np.uint8)


def read_label_studio(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    config = ElementTree.parse(out / "config.xml").getroot()
    assert [one.get("value") for one in config.iter("Label")] == list(classes.names)
    mask = np.zeros(size, np.uint8)
    for one in task_of(out, file)["predictions"][0]["result"]:
        if one["type"] == "brushlabels":
            assert (one["original_height"], one["original_width"]) == size
            pixels = unpacked(one["value"]["rle"]).reshape(*size, 4)
            (name,) = one["value"]["brushlabels"]
            mask[pixels[:, :, 3] == 255] = classes.names.index(name) + 1
    return mask


def read_fiftyone(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    """By its rules; `test_fiftyone_reads_it` lets its importer do it."""
    information = json.loads((out / "metadata.json").read_text())["info"]
    assert information["default_classes"] == list(classes.names)
    samples = json.loads((out / "samples.json").read_text())["samples"]
    (sample,) = (one for one in samples if one["filepath"] == f"images/{file}")
    picture = Image.open(out / sample["weaktr"]["mask_path"])
    assert picture.mode == "L"  # it takes the colours of a palette
    return np.array(picture)


def read_hf(out: Path, file: str, size, classes: Classes) -> np.ndarray:
    datasets = pytest.importorskip("datasets", reason="the reader, not installed")
    rows = datasets.load_dataset(str(out), cache_dir=str(out.parent / "cache"))["train"]
    assert rows.features["labels"].feature.names == list(classes.names)
    (row,) = (row for row in rows if row["name"] == str(Path(file).with_suffix("")))
    assert row["image"].size == size[::-1]
    return np.array(row["annotation"])


READERS = {
    "coco": read_coco, "yolo-seg": read_yolo, "labelme": read_labelme, "cvat": read_cvat,
    "label-studio": read_label_studio, "fiftyone": read_fiftyone, "hf": read_hf,
}  # fmt: skip


def needed(to: str) -> None:
    for package in FORMATS[to].needs:
        pytest.importorskip(package, reason=f"{to} needs it")


@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("case", ["difficult", "empty", "full", "noise", "all labels"])
def test_a_mask_comes_back_pixel_by_pixel(tmp_path, to, case):
    needed(to)
    noise = np.random.default_rng(0).integers(4, size=(31, 29), dtype=np.uint8)
    mask, classes = {
        "difficult": (difficult(), THREE),
        "empty": (np.zeros((5, 7), np.uint8), THREE),
        "full": (np.full((6, 4), 3, np.uint8), THREE),
        "noise": (noise, THREE),
        "all labels": (all_labels(), MANY),
    }[case]
    sources = sources_of(tmp_path, {"a": mask})
    out, report = exported(tmp_path, to, sources, classes)
    assert report.written == {"label": 1} and not report.left_out
    expected = without_ignored(mask) if to in INSTANCES else mask
    np.testing.assert_array_equal(READERS[to](out, "a.png", mask.shape, classes), expected)
    ignored = [note for note in report.notes if "255" in note]
    assert bool(ignored) == (to in INSTANCES and 255 in mask)


@pytest.mark.parametrize("to", READERS)
def test_photographs_in_folders_with_equal_names(tmp_path, to):
    needed(to)
    names = ("a", "cats/a", "cats/ä 猫 #1", "dogs/a.b", "dogs/100%")
    masks = {name: np.full((4, 5), k % 4, np.uint8) for k, name in enumerate(names)}
    out, report = exported(tmp_path, to, sources_of(tmp_path, masks), THREE)
    assert report.written.total() == len(names)
    for name, mask in masks.items():
        file = f"{name}.png"
        found = READERS[to](out, file, mask.shape, THREE)
        np.testing.assert_array_equal(found, mask)
        if to != "hf":
            original = tmp_path / "photographs" / file
            assert (out / "images" / file).read_bytes() == original.read_bytes()


def test_polygons_of_coco_and_run_lengths_of_parts_with_holes(tmp_path):
    """pycocotools finds the same pixels in polygons, single ones and diagonals too."""
    mask = difficult()
    sources = sources_of(tmp_path, {"a": mask})
    out, report = exported(tmp_path, "coco", sources, THREE, coco_segmentation="polygons")
    found = read_coco(out, "a.png", mask.shape, THREE)
    np.testing.assert_array_equal(found, without_ignored(mask))
    content = json.loads((out / "annotations.json").read_text())["annotations"]
    holes = [one for one in content if isinstance(one["segmentation"], dict)]
    assert len(holes) == 5 and all(one["iscrowd"] == 0 for one in content)
    assert sum(report.notes[note] for note in report.notes if "holes" in note) == 5


def test_small_parts_are_counted_where_they_are_left_out(tmp_path):
    mask = np.zeros((10, 20), np.uint8)
    mask[2:6, 2:6] = 1
    mask[8, 15] = mask[0, 19] = 2
    sources = sources_of(tmp_path, {"a": mask})
    out, report = exported(tmp_path, "coco", sources, THREE, least_area=0.01)
    (one,) = json.loads((out / "annotations.json").read_text())["annotations"]
    assert (one["area"], one["bbox"]) == (16, [2, 2, 4, 4])
    assert report.notes == {"parts below --least-area are left out": 2}


def test_image_level_labels_travel(tmp_path):
    masks = {"a": np.zeros((4, 6), np.uint8)}
    classes = Classes(HOSTILE)
    for to in set(READERS) - {"yolo-seg", "hf"}:
        needed(to)
        sources = sources_of(tmp_path / to, masks, labels=(0, 3))
        out, _ = exported(tmp_path / "out", to, sources, classes)
        given = {HOSTILE[0], HOSTILE[3]}
        if to == "coco":
            (image,) = json.loads((out / "annotations.json").read_text())["images"]
            found = set(image["labels"])
        elif to == "labelme":
            found = set(json.loads((out / "images/a.json").read_text())["flags"])
        elif to == "cvat":
            tree = ElementTree.parse(out / "annotations.xml")
            found = {tag.get("label") for tag in tree.iterfind("image/tag")}
        elif to == "label-studio":
            (result,) = task_of(out, "a.png")["predictions"][0]["result"]
            found = set(result["value"]["choices"])
        else:
            (sample,) = json.loads((out / "samples.json").read_text())["samples"]
            found = {one["label"] for one in sample["image_labels"]["classifications"]}
        assert found == given, to


def test_labels_and_rows_of_hf(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the reader, not installed")
    masks = {f"n{k:03}": np.full((3, 4), k % 4, np.uint8) for k in range(205)}
    out, _ = exported(tmp_path, "hf", sources_of(tmp_path, masks, labels=(1, 2)), THREE)
    rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 205 and rows[204]["labels"] == [1, 2] and rows[204]["name"] == "n204"
    file = pytest.importorskip("pyarrow.parquet").ParquetFile(
        out / "data/train-00000-of-00001.parquet"
    )
    assert [file.metadata.row_group(k).num_rows for k in range(3)] == [100, 100, 5]
    assert json.loads((out / "id2label.json").read_text())["3"] == "bird"


def test_tiny_parts_are_counted(tmp_path):
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 10:20] = 1
    mask[40, 40:45] = 2  # five pixels are the share that is not tiny
    mask[50, 50:54] = mask[60, 60] = 3
    for to in READERS:
        if FORMATS[to].by_parts:
            _, report = exported(
                tmp_path / "out", to, sources_of(tmp_path / to, {"a": mask}), THREE
            )
            assert (report.parts, report.tiny) == (4, 2), to
    _, report = exported(
        tmp_path / "x", "coco", sources_of(tmp_path, {"a": mask}), THREE, least_area=TINY
    )
    assert (report.parts, report.tiny) == (2, 0)


def listed_photographs(out: Path, split: str) -> list[Path]:
    """The photographs of a split as ultralytics finds them (`BaseDataset.get_img_files`)."""
    description = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    place = (out / description[split]).resolve()
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.is_file())
    lines = place.read_text(encoding="utf-8").strip().splitlines()
    parent = f"{place.parent}/"
    return [Path(p.replace("./", parent) if p.startswith("./") else p) for p in lines]


NAMES_OF_FILES = ("a", "cats/ä 猫 #1", " blank", "dogs/a.b", "100%")


def test_yolo_finds_the_polygons_of_photographs_in_folders_called_images(tmp_path):
    """Where ultralytics looks: the last folder called images stands for labels."""
    names = ("a", "images/a", "site/images/b.c", "images.x/images/images/d", "myimages/e")
    masks = {name: np.full((4, 5), number % 2 + 1, np.uint8) for number, name in enumerate(names)}
    out, _ = exported(tmp_path, "yolo-seg", sources_of(tmp_path, masks), Classes(("c", "d")))
    for name, mask in masks.items():
        above, below = str(out / f"images/{name}.png").rsplit("/images/", 1)
        polygons = Path(f"{above}/labels/{below}").with_suffix(".txt")
        assert polygons.read_text().split()[0] == str(mask[0, 0] - 1)
    assert len(list(out.rglob("*.txt"))) == len(names)


@pytest.mark.parametrize("held_out", [(), (1, 4), (0, 1, 2, 3, 4)])
def test_splits_of_yolo(tmp_path, held_out):
    masks = {name: np.full((4, 5), 1, np.uint8) for name in NAMES_OF_FILES}
    sources = [
        source._replace(is_held_out=index in held_out)
        for index, source in enumerate(sources_of(tmp_path, masks))
    ]
    out, report = exported(tmp_path, "yolo-seg", sources, THREE)
    found = {split: set(listed_photographs(out, split)) for split in ("train", "val")}
    files = [(out / "images" / f"{name}.png").resolve() for name in NAMES_OF_FILES]
    assert all(file.is_file() for file in files)
    if len(held_out) in (0, len(files)):
        assert found == {"train": set(files), "val": set(files)}
        assert not list(out.glob("*.txt"))
    else:
        val = {files[index] for index in held_out}
        assert found == {"train": set(files) - val, "val": val}
        for file in files:  # as ultralytics finds the labels of a photograph
            before, _, after = str(file).rpartition("/images/")
            assert Path(f"{before}/labels/{after}").with_suffix(".txt").is_file()
    assert not report.notes


@pytest.mark.parametrize("name", ["a./b", "a\u2028b"])
def test_names_that_no_list_of_yolo_can_hold(tmp_path, name):
    masks = {"a": np.ones((4, 5), np.uint8), name: np.ones((4, 5), np.uint8)}
    first, second = sources_of(tmp_path, masks)
    sources = [first, second._replace(is_held_out=True)]
    out, report = exported(tmp_path, "yolo-seg", sources, THREE)
    assert len(listed_photographs(out, "train")) == len(listed_photographs(out, "val")) == 2
    assert sum(report.notes[note] for note in report.notes if "no list can hold" in note) == 1


def test_splits_of_hf(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the reader, not installed")
    masks = {name: np.ones((4, 5), np.uint8) for name in ("a", "b")}
    first, second = sources_of(tmp_path, masks)
    sources = [first, second._replace(is_held_out=True)]
    out, _ = exported(tmp_path, "hf", sources, THREE)
    rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: rows[split]["name"][:] for split in rows} == {
        "train": ["a"], "validation": ["b"],
    }  # fmt: skip


# ---- the readers of the tools themselves -----------------------------------------------------


def test_labelme_reads_it(tmp_path):
    labelme = pytest.importorskip("labelme", reason="needs Qt; not installed")
    from labelme._label_file import LabelFile

    mask = difficult()
    out, _ = exported(tmp_path, "labelme", sources_of(tmp_path, {"a": mask}, labels=(1,)), THREE)
    read = LabelFile(str(out / "images/a.json"))
    values = {name: label for label, name in enumerate(THREE.names, 1)}
    found, _ = labelme.utils.shapes_to_label(mask.shape, read.shapes, values)
    np.testing.assert_array_equal(found, without_ignored(mask))
    assert read.flags == {"dog": True}


def test_datumaro_reads_cvat(tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="not installed")
    mask, classes = difficult(), Classes(HOSTILE)
    out, _ = exported(tmp_path, "cvat", sources_of(tmp_path, {"s/a": mask}, labels=(1,)), classes)
    dataset = datumaro.Dataset.import_from(str(out / "annotations.xml"), "cvat")
    (item,) = dataset
    found = np.zeros(mask.shape, np.uint8)
    for one in item.annotations:
        if one.type.name == "mask":
            found[one.image.astype(bool)] = one.label + 1
    np.testing.assert_array_equal(found, without_ignored(mask))
    assert [one.label for one in item.annotations if one.type.name == "label"] == [1]


def test_supervision_reads_yolo(tmp_path):
    supervision = pytest.importorskip("supervision", reason="not installed")
    mask = difficult()
    out, _ = exported(tmp_path, "yolo-seg", sources_of(tmp_path, {"a": mask}), THREE)
    read = supervision.DetectionDataset.from_yolo(
        str(out / "images"), str(out / "labels"), str(out / "data.yaml"), force_masks=True
    )
    ((_, _, detections),) = read
    found = np.zeros(mask.shape, np.uint8)
    for inside, index in zip(detections.mask, detections.class_id, strict=True):
        found[inside] = index + 1
    np.testing.assert_array_equal(found, without_ignored(mask))


def test_label_studio_reads_it(tmp_path):
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="not installed")
    mask = np.zeros((400, 300), np.uint8)  # with runs that are too long for 16 bits
    mask[250:390, 3:299] = 1
    out, _ = exported(tmp_path, "label-studio", sources_of(tmp_path, {"a": mask}), THREE)
    (result,) = task_of(out, "a.png")["predictions"][0]["result"]
    found = brush.decode_rle(result["value"]["rle"])
    np.testing.assert_array_equal(
        found.reshape(400, 300, 4), np.repeat(mask[..., None], 4, 2) * 255
    )
    np.testing.assert_array_equal(found, unpacked(result["value"]["rle"]))


def test_fiftyone_reads_it(tmp_path):
    pytest.importorskip("fiftyone", reason="not installed")
    from fiftyone.utils.data.importers import LegacyFiftyOneDatasetImporter

    mask = difficult()
    out, _ = exported(tmp_path, "fiftyone", sources_of(tmp_path, {"s/a": mask}, labels=(2,)), THREE)
    with LegacyFiftyOneDatasetImporter(str(out)) as importer:  # a dataset would need MongoDB
        (sample,) = list(importer)
        assert importer.get_dataset_info()["default_mask_targets"]["3"] == "bird"
    np.testing.assert_array_equal(sample["weaktr"].get_mask(), mask)
    assert [one.label for one in sample["image_labels"].classifications] == ["bird"]
    assert Path(sample.filepath).is_file()
