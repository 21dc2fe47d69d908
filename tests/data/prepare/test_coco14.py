"""``weaktr data prepare coco14`` on little archives in the official layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.prepare import official_archives as little
from tests.data.prepare.loopback import Site, serving
from tests.data.prepare.test_voc12 import QUICK, check_second_run, counts, snapshot
from weaktr import cli
from weaktr.data import load_manifest, read_mask, render
from weaktr.data.prepare import Archive, CocoFacts, official, prepare_coco14

NAMES = ("annotations_trainval2014.zip", "train2014.zip", "val2014.zip")
FACTS = CocoFacts(
    Archive(NAMES[0], ("http://x/a",)),
    {"train": Archive(NAMES[1], ("http://x/t",)), "val": Archive(NAMES[2], ("http://x/v",))},
    little.COCO_COUNTS,
)
COMPLETE = {"train": (2, 2, 2, 2), "val": (1, 1, 1, 1)}

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"  # pycocotools'
)


def archives() -> dict[str, bytes]:
    images = {f"{split}2014.zip": little.coco_images_zip(split) for split in ("train", "val")}
    return {NAMES[0]: little.coco_annotations_zip(), **images}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site(archives())) as started:
        yield started


@pytest.fixture
def facts(site: Site) -> CocoFacts:
    images = {split: site.archive(f"{split}2014.zip") for split in ("train", "val")}
    return CocoFacts(site.archive(NAMES[0]), images, little.COCO_COUNTS)


def mask(root: Path, split: str, number: int) -> np.ndarray:
    return np.array(Image.open(root / f"masks/{split}2014/{little.coco_name(split, number)}.png"))


def test_from_nothing(site: Site, facts: CocoFacts, tmp_path: Path) -> None:
    result = prepare_coco14(tmp_path / "coco", fetch=True, facts=facts, patience=QUICK)
    root = tmp_path / "coco"
    assert result.complete and result.changed and not result.missing
    assert counts(root) == COMPLETE
    assert not list((root / "annotations").glob("captions*"))
    train = load_manifest("coco14", root, "train")
    assert [sample.labels for sample in train] == [(0, 43), (89,)]  # without image 30
    assert train.samples[0].name == little.coco_name("train", 9)
    assert (root / "voc_format/val.txt").read_text() == f"{little.coco_name('val', 42)}\n"


def test_masks(tmp_path: Path) -> None:
    root = little.write(tmp_path, archives())
    prepare_coco14(root, facts=FACTS)
    drawn = mask(root, "train", 9)
    assert (drawn[3, 3], drawn[7, 7], drawn[0, 0]) == (1, 44, 0)  # small object on top
    crowd = mask(root, "val", 42)
    assert (crowd[2, 2], crowd[5, 5], crowd[20, 20]) == (255, 90, 0)  # object above the crowd
    assert Image.open(next((root / "masks/val2014").iterdir())).mode == "P"


def test_faulty_annotations_leave_out_their_image(tmp_path: Path) -> None:
    """The others are drawn; what is wrong is said, and drawn once it is mended."""
    content = json.loads(little.coco_instances("train"))
    content["annotations"][2]["segmentation"] = [[1, 1, float("nan"), 4, 4, 4]]  # of image 25
    changed = archives() | {
        NAMES[0]: little.zipped(
            {
                "annotations/instances_train2014.json": json.dumps(content).encode(),
                "annotations/instances_val2014.json": little.coco_instances("val"),
            }
        )
    }
    root = little.write(tmp_path, changed)
    result = prepare_coco14(root, facts=FACTS)
    assert counts(root) == COMPLETE | {"train": (2, 2, 2, 1)}
    assert [m.what for m in result.missing] == [
        f"masks of train: 1 faults of annotations, the first: {root}/annotations/"
        "instances_train2014.json (annotation 2500 of image 25): expected polygons in or near an "
        "image of 32x24 (width x height), got x from nan to nan and y from 1 to 4",
        "train: 1 masks",
    ]
    little.write(root, {"annotations/instances_train2014.json": little.coco_instances("train")})
    assert prepare_coco14(root, facts=FACTS).complete


def test_masks_of_another_size_than_the_photograph_are_not_drawn(tmp_path: Path) -> None:
    sizes = {9: (25, 32), 25: (24, 32)}
    names = {number: f"train2014/{little.coco_name('train', number)}.jpg" for number in sizes}
    photographs = {names[number]: little.jpeg(number, size) for number, size in sizes.items()}
    root = little.write(tmp_path, archives() | {NAMES[1]: little.zipped(photographs)})
    result = prepare_coco14(root, facts=FACTS)
    assert "expected 32x25 (width x height), got 32x24" in result.missing[0].what
    assert [file.stem for file in (root / "masks/train2014").iterdir()] == [Path(names[25]).stem]


def test_eighty_classes(tmp_path: Path) -> None:
    root = little.write(tmp_path, archives())
    prepare_coco14(root, facts=FACTS)
    before = mask(root, "train", 9)
    ninety = load_manifest("manifest", root / "manifests/train.json")
    result = prepare_coco14(root, coco_ids=80, facts=FACTS)
    assert result.complete and len(result.classes) == 80
    eighty = load_manifest("manifest", root / "manifests/train.json")
    assert (len(ninety.classes), ninety.samples[0].labels) == (90, (0, 43))
    assert (len(eighty.classes), eighty.samples[0].labels) == (80, (0, 39))
    np.testing.assert_array_equal(mask(root, "train", 9), before)  # the file keeps COCO ids
    assert np.unique(read_mask(ninety.samples[0], 91)).tolist() == [0, 1, 44]
    assert np.unique(read_mask(eighty.samples[0], 81)).tolist() == [0, 1, 40]
    with pytest.raises(ValueError, match="90 or 80"):
        prepare_coco14(root, coco_ids=91, facts=FACTS)  # type: ignore[arg-type]


def test_second_run_changes_nothing(site: Site, facts: CocoFacts, tmp_path: Path) -> None:
    check_second_run(prepare_coco14, site, facts, tmp_path)
    assert len(site.asked) == 3


def test_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = little.write(tmp_path, archives())
    original, drawn = render.write_mask, []

    def stop_at_second(path: Path, labels: np.ndarray, **options: Any) -> str:
        if drawn:
            raise KeyboardInterrupt
        drawn.append(path)
        return original(path, labels, **options)

    monkeypatch.setattr(render, "write_mask", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        prepare_coco14(root, facts=FACTS)
    monkeypatch.undo()
    first = drawn[0].stat().st_mtime_ns
    left = little.left_by_a_killed_process(drawn[0].parent)
    (root / "train2014" / f"{little.coco_name('train', 25)}.jpg").write_bytes(b"")
    assert prepare_coco14(root, facts=FACTS).complete
    assert drawn[0].stat().st_mtime_ns == first
    assert not left.exists()
    half = root / f"masks/val2014/{little.coco_name('val', 42)}.png"
    half.write_bytes(half.read_bytes()[:-5])  # what a power cut may leave
    assert prepare_coco14(root, facts=FACTS).changed
    assert mask(root, "val", 42).max() == 255


@pytest.mark.parametrize("layout", ["MSCOCO", "coco"])
def test_folders_that_are_there(tmp_path: Path, layout: str) -> None:
    folders = {"MSCOCO": ("JPEGImages/{}", "SegmentationClass/{}"),
               "coco": ("images", "voc_format/class_labels")}[layout]  # fmt: skip
    for split, numbers in little.COCO_ROWS.items():
        images, masks = (tmp_path / folder.format(split) for folder in folders)
        for number in numbers:
            name = little.coco_name(split, number)
            little.write(images, {f"{name}.jpg": little.jpeg(number)})
            little.write(masks, {f"{name}.png": little.png(little.labels(13))})
        little.write(
            tmp_path, {f"annotations/instances_{split}2014.json": little.coco_instances(split)}
        )
    before = snapshot(tmp_path)
    result = prepare_coco14(tmp_path, facts=FACTS)
    assert result.complete and counts(tmp_path) == COMPLETE
    assert result.origins["masks of val"] == "as it was found"
    assert not (tmp_path / "masks").exists()
    assert before.items() <= snapshot(tmp_path).items()  # no mask was drawn over


def test_what_is_missing(tmp_path: Path) -> None:
    said = [missing.what for missing in prepare_coco14(tmp_path, facts=FACTS).missing]
    assert said == [f"{s}: no annotations/instances_{s}2014.json" for s in ("train", "val")]
    content = archives()
    little.write(tmp_path, {name: content[name] for name in NAMES[:2]})
    missing = {entry.what: entry.remedy for entry in prepare_coco14(tmp_path, facts=FACTS).missing}
    assert "http://x/v" in missing["val: no images at all"]
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / "train2014" / f"{little.coco_name('train', 25)}.jpg").unlink()
    said = [entry.what for entry in prepare_coco14(tmp_path, facts=FACTS).missing]
    assert f"train: 1 images ({little.coco_name('train', 25)})" in said
    assert not json.loads((tmp_path / "manifest.json").read_text())["complete"]


def test_lists_of_others_are_kept_and_counted(tmp_path: Path) -> None:
    name = little.coco_name("train", 25)
    root = little.write(tmp_path, {**archives(), "voc_format/train.txt": f"{name}\n".encode()})
    result = prepare_coco14(root, facts=FACTS)
    assert [missing.what for missing in result.missing] == [
        "train: 1 images in its list, expected 2"
    ]
    assert (root / "voc_format/train.txt").read_text() == f"{name}\n"


@pytest.mark.parametrize("with_json", [True, False])
def test_labels_from_npy(tmp_path: Path, with_json: bool) -> None:
    root = little.write(tmp_path, archives())
    prepare_coco14(root, facts=FACTS)
    if not with_json:
        (root / NAMES[0]).unlink()
        for split in ("train", "val"):
            (root / f"annotations/instances_{split}2014.json").unlink()
    content: dict[str, Any] = {
        little.coco_name(split, number): np.eye(90)[12]
        for split, numbers in little.COCO_ROWS.items()
        for number in numbers
    }
    np.save(root / "mine.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    result = prepare_coco14(root, cls_labels=root / "mine.npy", facts=FACTS)
    assert result.complete and counts(root) == COMPLETE
    saved = load_manifest("manifest", root / "manifests/val.json")
    assert saved.samples[0].labels == (12,)


def test_command(
    site: Site, facts: CocoFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "COCO14", facts)
    command = ["data", "prepare", "coco14", "--root", str(tmp_path)]
    site.status = 404
    assert cli.main([*command, "--download"]) == 2
    site.status, site.cut_after, site.asked[:] = None, 3000, []
    assert cli.main([*command, "--download", "--coco-ids", "80"]) == 0
    assert len(site.asked) > 3  # the connections were cut
    assert json.loads((tmp_path / "manifest.json").read_text())["classes"]["ids"][-1] == 90
    assert cli.main(["data", "check", "coco14", str(tmp_path), "--split", "val"]) == 0
    assert cli.main([*command, "--sbd", str(tmp_path)]) == 2
