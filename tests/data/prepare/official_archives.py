"""VOC 2012, SBD and COCO 2014 in little: the archives' very layouts, with a few images each."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.trees import SIZE, square
from weaktr.files import whole_file

VOC_TRAIN = ("2007_000032", "2007_000039")
VOC_VAL = ("2007_000033",)
#: Annotated by SBD: one of VOC's train, one of VOC's val, two of its own.
SBD_TRAIN = ("2007_000032", "2008_000002", "2008_000003")
SBD_VAL = ("2007_000033",)
TRAIN_AUG = ("2007_000032", "2007_000039", "2008_000002", "2008_000003")
VOC_COUNTS = {"train": 2, "train_aug": 4, "val": 1}
#: Class of the object in each image, as VOC names and numbers it.
OBJECTS = {
    "2007_000032": ("aeroplane", 1), "2007_000033": ("bird", 3), "2007_000039": ("tvmonitor", 20),
    "2008_000002": ("tvmonitor", 20), "2008_000003": ("train", 19),
}  # fmt: skip
#: What SBD says of 2007_000032 and _033, whose VOC masks come first.
SBD_LABEL = 7


def jpeg(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def labels(label: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Background, a rectangle of `label`, in it a strip of 255."""
    mask = np.zeros(size, np.uint8)
    mask[4:12, 5:20] = label
    mask[4, 5:20] = 255
    return mask


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def tar(content: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _lines(names: tuple[str, ...]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def voc_tar() -> bytes:
    """``VOCtrainval_11-May-2012.tar``."""
    top = "VOCdevkit/VOC2012"
    everything = tuple(OBJECTS)
    files = {}
    for name, (kind, _) in OBJECTS.items():
        entry = f"<object><name>{kind}</name><difficult>0</difficult></object>"
        files[f"{top}/Annotations/{name}.xml"] = f"<annotation>{entry}</annotation>".encode()
    files[f"{top}/ImageSets/Main/trainval.txt"] = _lines(everything)
    files[f"{top}/ImageSets/Segmentation/train.txt"] = _lines(VOC_TRAIN)
    files[f"{top}/ImageSets/Segmentation/val.txt"] = _lines(VOC_VAL)
    for seed, name in enumerate(everything):
        files[f"{top}/JPEGImages/{name}.jpg"] = jpeg(seed)
    for name in (*VOC_TRAIN, *VOC_VAL):
        files[f"{top}/SegmentationClass/{name}.png"] = png(labels(OBJECTS[name][1]))
        files[f"{top}/SegmentationObject/{name}.png"] = png(labels(1))
    return tar(files)


def sbd_tgz() -> bytes:
    """``benchmark.tgz``."""
    top = "benchmark_RELEASE/dataset"
    files = {"benchmark_RELEASE/README": b"semantic contours"}
    for name in (*SBD_TRAIN, *SBD_VAL):
        label = SBD_LABEL if name.startswith("2007") else OBJECTS[name][1]
        truth = sbd_mat(np.minimum(labels(label), 20))  # SBD has no 255
        files[f"{top}/cls/{name}.mat"] = truth
        files[f"{top}/inst/{name}.mat"] = truth
        files[f"{top}/img/{name}.jpg"] = b"the image again"
    files[f"{top}/train.txt"] = _lines(SBD_TRAIN)
    files[f"{top}/val.txt"] = _lines(SBD_VAL)
    return tar(files, "w:gz")


def augmented() -> dict[str, bytes]:
    """``SegmentationClassAug``: file name -> PNG."""
    return {f"{name}.png": png(labels(label)) for name, (_, label) in OBJECTS.items()}


# ---------------------------------------------------------------- MATLAB


def sbd_mat(segmentation: np.ndarray, *, compressed: bool = True) -> bytes:
    """A file of SBD's ``cls``: GTcls with Boundaries (cells), Segmentation, CategoriesPresent."""
    cells = matrix(1, (2, 1), matrix(6, (1, 1), _number(9, np.float64([1.0]))) * 2)
    present = matrix(9, (1, 1), _number(2, np.uint8([7])))
    height, width = segmentation.shape
    pixels = matrix(9, (height, width), _number(2, segmentation.ravel(order="F")))
    names = b"".join(
        name.ljust(20, b"\0") for name in (b"Boundaries", b"Segmentation", b"CategoriesPresent")
    )
    fields = _number(5, np.int32([20])) + element(1, names) + cells + pixels + present
    content = matrix(2, (1, 1), fields, b"GTcls")
    if compressed:
        packed = zlib.compress(content)
        content = struct.pack("<II", 15, len(packed)) + packed
    return (
        b"MATLAB 5.0 MAT-file".ljust(116) + b"\0" * 8 + struct.pack("<H", 0x100) + b"IM" + content
    )


def matrix(kind: int, shape: tuple[int, ...], content: bytes, name: bytes = b"") -> bytes:
    """A MATLAB array of class `kind`."""
    head = _number(6, np.uint32([kind, 0])) + _number(5, np.int32(shape)) + element(1, name)
    return element(14, head + content)


def _number(kind: int, values: np.ndarray) -> bytes:
    return element(kind, values.tobytes())


def element(kind: int, data: bytes) -> bytes:
    """A data element; up to four bytes in the short form."""
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


# ---------------------------------------------------------------- COCO

#: split -> image id -> rows (category, crowd, left, top, side). The last image has none.
COCO_ROWS: dict[str, dict[int, list[tuple[int, int, int, int, int]]]] = {
    "train": {9: [(1, 0, 2, 2, 16), (44, 0, 6, 6, 4)], 25: [(90, 0, 4, 4, 8)], 30: []},
    "val": {42: [(90, 0, 3, 3, 6), (1, 1, 2, 2, 12)], 73: []},
}
COCO_COUNTS = {"train": 2, "val": 1}
_CATEGORIES = [(1, "person"), (13, "stop sign"), (44, "bottle"), (90, "toothbrush")]


def coco_name(split: str, number: int) -> str:
    return f"COCO_{split}2014_{number:012d}"


def coco_images_zip(split: str) -> bytes:
    """``train2014.zip`` or ``val2014.zip``."""
    names = {number: f"{split}2014/{coco_name(split, number)}.jpg" for number in COCO_ROWS[split]}
    return zipped({name: jpeg(number) for number, name in names.items()})


def coco_annotations_zip() -> bytes:
    """``annotations_trainval2014.zip``."""
    files = {}
    for split in COCO_ROWS:
        files[f"annotations/instances_{split}2014.json"] = coco_instances(split)
        files[f"annotations/captions_{split}2014.json"] = b"{}"
        files[f"annotations/person_keypoints_{split}2014.json"] = b"{}"
    return zipped(files)


def coco_instances(split: str) -> bytes:
    height, width = SIZE
    images = [
        {"id": n, "file_name": f"{coco_name(split, n)}.jpg", "height": height, "width": width}
        for n in COCO_ROWS[split]
    ]
    annotations = [
        {
            "id": 100 * number + row,
            "image_id": number,
            "category_id": category,
            "iscrowd": crowd,
            "area": float(side * side),
            "segmentation": _run_lengths(left, top, side) if crowd else square(left, top, side),
        }
        for number, rows in COCO_ROWS[split].items()
        for row, (category, crowd, left, top, side) in enumerate(rows)
    ]
    categories = [{"id": number, "name": name} for number, name in _CATEGORIES]
    return json.dumps(
        {"images": images, "annotations": annotations, "categories": categories}
    ).encode()


def _run_lengths(left: int, top: int, side: int) -> dict[str, object]:
    """A square as COCO writes crowds: uncompressed run lengths, column by column."""
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + side, left : left + side] = 1
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}


def write(folder: Path, content: dict[str, bytes]) -> Path:
    """Write files below `folder`."""
    for name, data in content.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def left_by_a_killed_process(folder: Path) -> Path:
    """A half-written file of a process that is no more."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with whole_file(folder / "x") as temporary:
        name = f"{temporary.name[:17]}{dead.pid:08x}{temporary.name[25:]}"
    (folder / "x").unlink()
    (folder / name).write_bytes(b"half")
    return folder / name
