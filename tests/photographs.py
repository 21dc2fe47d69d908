"""Two small pictures as VOC 2012 and as COCO 2014 lie on disk: real photographs, or generated."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.trees import write_list, write_xml
from weaktr.data import load_manifest
from weaktr.data.classes import COCO90, VOC

COCO128 = Path(__file__).parents[2] / "shared/data/coco128"
#: Photographs are brought to this short side, so that the tests take seconds.
SHORT_SIDE = 112
#: Classes of the same name in VOC and COCO that the photographs are chosen by.
SHARED = ("person", "cat", "dog", "car", "bus", "bird", "horse")


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 [H, W, 3] and a mask [H, W] of COCO ids, of the classes `SHARED` only."""

    image: Image.Image
    mask: np.ndarray

    @property
    def ids(self) -> list[int]:
        return np.unique(self.mask[self.mask > 0]).tolist()


def photographs() -> list[Picture]:
    """Two photographs of COCO; skips the test where they are not at hand."""
    if not COCO128.is_dir():
        pytest.skip(f"the photographs {COCO128} are not here")
    wanted = {COCO90.ids[COCO90.index_of_name[name]] for name in SHARED}
    chosen: list[Picture] = []
    for sample in load_manifest("coco14", COCO128, "train", ids=90):
        ids = {COCO90.ids[index] for index in sample.labels or ()}
        if len(chosen) < 2 and ids and ids <= wanted and sample.mask is not None:
            picture, mask = Image.open(sample.image).convert("RGB"), Image.open(sample.mask)
            scale = SHORT_SIDE / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            small = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
            chosen.append(Picture(picture.resize(size), np.where(small == 255, 0, small)))
    return chosen


def generated() -> list[Picture]:
    """Two grey noise images, each with a coloured square."""
    pictures = []
    for seed, name in enumerate(("cat", "dog")):
        pixels = np.random.default_rng(seed).integers(90, 140, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 12:44] = COCO90.ids[COCO90.index_of_name[name]]
        pixels[mask > 0] = (230, 40, 40) if seed else (40, 40, 230)
        pictures.append(Picture(Image.fromarray(pixels), mask))
    return pictures


def write_voc12(root: Path, pictures: list[Picture]) -> Path:
    """``VOCdevkit/VOC2012`` below `root`; both pictures are train_aug, train and val."""
    voc = root / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (voc / folder).mkdir(parents=True)
    names = []
    for index, picture in enumerate(pictures):
        name = f"2007_{index:06d}"
        picture.image.save(voc / f"JPEGImages/{name}.jpg", quality=95)
        mask = np.zeros_like(picture.mask)
        classes = [COCO90.names[COCO90.ids.index(identity)] for identity in picture.ids]
        for identity, kind in zip(picture.ids, classes, strict=True):
            mask[picture.mask == identity] = VOC.index_of_name[kind] + 1
        Image.fromarray(mask).save(voc / f"SegmentationClassAug/{name}.png")
        write_xml(voc / f"Annotations/{name}.xml", [(kind, False) for kind in classes])
        names.append(name)
    for split in ("train_aug", "train", "val"):
        write_list(voc / f"ImageSets/Segmentation/{split}.txt", names)
    return root


def write_coco14(root: Path, pictures: list[Picture]) -> Path:
    """``train2014`` and the like below `root`; both pictures are train and val."""
    categories = [{"id": i, "name": n} for i, n in zip(COCO90.ids, COCO90.names, strict=True)]
    images, annotations = [], []
    for folder in ("train2014", "masks/train2014", "annotations"):
        (root / folder).mkdir(parents=True)
    for number, picture in enumerate(pictures, start=1):
        stem = f"COCO_train2014_{number:012d}"
        picture.image.save(root / f"train2014/{stem}.jpg", quality=95)
        Image.fromarray(picture.mask).save(root / f"masks/train2014/{stem}.png")
        width, height = picture.image.size
        name = f"{stem}.jpg"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations += [
            {"id": 100 * number + i, "image_id": number, "category_id": i, "iscrowd": 0,
             "area": 4.0, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
            for i in picture.ids
        ]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))
    for folder in ("", "masks"):
        shutil.copytree(root / folder / "train2014", root / folder / "val2014")
    return root
