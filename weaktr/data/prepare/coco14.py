"""``weaktr data prepare coco14``: images, annotations, drawn masks, lists, one manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from weaktr.data.classes import COCO80, COCO90
from weaktr.data.instances import CocoImage, read_instances
from weaktr.data.layout import IMAGE_SUFFIXES, read_lines
from weaktr.data.pngs import is_whole_png
from weaktr.data.prepare import official
from weaktr.data.prepare.download import Patience
from weaktr.data.prepare.result import Missing, Prepared, is_whole
from weaktr.data.prepare.sources import Sources
from weaktr.data.problems import Problem
from weaktr.data.render import draw_masks, mask_path
from weaktr.data.sources.coco14 import (
    Numbered,
    coco14,
    image_folder,
    instances_file,
    listed,
    mask_folder,
    stem,
)
from weaktr.files import clear_abandoned, write_bytes
from weaktr.progress import log

_DRAWN = "drawn from the instances JSON: COCO ids 1..90, small objects on top, crowds 255 = ignore"


def prepare_coco14(
    root: str | Path,
    *,
    fetch: bool = False,
    archives: str | Path | None = None,
    cls_labels: str | Path | None = None,
    coco_ids: Literal[90, 80] = 90,
    facts: official.CocoFacts | None = None,
    patience: Patience | None = None,
) -> Prepared:
    """Make COCO 2014 ready for training and scoring, as far as the data at hand allow.

    Args:
        root: where the data are or will be, in any layout of `weaktr.data.sources.coco14`.
        fetch: download what is missing into ``root/downloads``.
        archives: a further folder with archives, beside `root` and ``root/downloads``.
        cls_labels: ``cls_labels.npy`` with the image labels. None = the JSON's.
        coco_ids: numbering of the classes in the manifests: 90 as published, or the 80 that occur.
            Masks hold COCO ids in both cases and are mapped while being read.
        facts: archives and counts. None = the official ones.
        patience: how hard to try to download.

    Returns:
        What is there and what is missing; also written to ``root/manifest.json``.

    Raises:
        ValueError: `root`, an archive or a JSON cannot be used; says why.
    """
    root, facts = Path(root), facts or official.COCO14
    if coco_ids not in (90, 80):
        raise ValueError(f"coco_ids: expected 90 or 80, got {coco_ids!r}")
    sources = Sources(root, fetch=fetch, archives=archives, patience=patience)
    clear_abandoned(root)
    result = Prepared("coco14", root, COCO90 if coco_ids == 90 else COCO80)
    result.origins["labels"] = str(cls_labels or "instances JSON, crowds included")
    absent = any(_json(root, split) is None for split in facts.counts)
    result.changed |= sources.unpack(facts.annotations, root, _place_json, wanted=absent) > 0
    for name in facts.counts:
        split = _Split(root, name, sources, facts, result)
        split.unpack_images()
        split.write_list()
        split.draw()
        split.count(cls_labels, coco_ids)
    result.write()
    return result


def _parts(split: str) -> tuple[str, str]:
    return f"{split}2014", split


def _json(root: Path, split: str) -> Path | None:
    return instances_file(root, _parts(split))


def _place_json(name: str) -> str | None:
    """The instances of both splits; captions and keypoints are left in the archive."""
    match = re.search(r"annotations/instances_(?:train|val)2014\.json$", name)
    return None if match is None else match[0]


class _Split:
    """One split during preparation; call the methods in the order in which they are written."""

    def __init__(
        self, root: Path, name: str, sources: Sources, facts: official.CocoFacts, result: Prepared
    ) -> None:
        self.root, self.name, self.sources, self.facts = root, name, sources, facts
        self.result, self.parts = result, _parts(name)
        path = _json(root, name)
        self.declared = None if path is None else read_instances(path)
        self.list_file = root / f"voc_format/{name}.txt"
        self.images = self._image_folder()

    def unpack_images(self) -> None:
        """Unpack the images if one is missing."""
        folder = self.images or self.root / self.parts[0]

        def place(name: str) -> str | None:
            _, mark, rest = name.partition(f"{self.parts[0]}/")
            return rest if mark and rest.lower().endswith(IMAGE_SUFFIXES) else None

        written = self.sources.unpack(
            self.facts.images[self.name], folder, place, wanted=not self._has_images()
        )
        self.result.changed |= written > 0
        self.images = self._image_folder()

    def write_list(self) -> None:
        """Write ``voc_format/SPLIT.txt``, the images with annotations, where there is no list."""
        if self.list_file.is_file() or self.declared is None:
            return
        lines = "".join(f"{Path(name).stem}\n" for name in self._annotated())
        write_bytes(self.list_file, lines.encode())
        self.result.changed = True

    def draw(self) -> None:
        """Draw the masks, unless there is a folder with masks from elsewhere."""
        what = f"masks of {self.name}"
        folder = self._mask_folder()
        if folder is not None and self.sources.origin(what) != _DRAWN:
            self.result.origins[what] = self.sources.origin(what)
            return
        if self.declared is None:
            return
        self.result.origins[what] = self.sources.origin(what, _DRAWN)
        masks = folder or self.root / "masks" / self.parts[0]
        drawn, faults = draw_masks(self.declared, self._undrawn(masks), masks, self.images)
        log.info("%s: %d drawn", what, len(drawn))
        if faults:
            left = f"{what}: {len(faults)} faults of annotations, the first: {faults[0]}"
            self.result.missing.append(
                Missing(left, f"mend the JSON ({self._check()}), and start again")
            )
        self.result.changed |= bool(drawn)

    def count(self, cls_labels: str | Path | None, coco_ids: Literal[90, 80]) -> None:
        """Write the manifest of the split, count its images, and note what is missing."""
        missing, remedy = self.result.missing, self.sources.remedy
        if self.declared is None and not self.list_file.is_file():
            what = f"{self.name}: no annotations/instances_{self.parts[0]}.json"
            missing.append(Missing(what, remedy(self.facts.annotations)))
            return
        archive = self.facts.images[self.name]
        if self.images is None:
            missing.append(Missing(f"{self.name}: no images at all", remedy(archive)))
            return
        instances = self.declared
        if instances is not None:
            instances = instances.numbered(coco_ids)
        problems: list[Problem] = []
        manifest = coco14(
            self.root,
            self.name,
            ids=coco_ids,
            instances=instances,
            images=self.images,
            masks=self._mask_folder(),
            cls_labels=cls_labels,
            problems=problems,
        )
        if problems:
            what = f"{self.name}: {len(problems)} faults, the first: {problems[0]}"
            missing.append(Missing(what, self._check()))
        manifest = self.result.add_split(manifest, self.facts.counts[self.name], remedy(archive))
        if unmasked := sum(sample.mask is None for sample in manifest):
            what = f"{self.name}: {unmasked} masks"
            missing.append(Missing(what, "masks are drawn from the JSON: " + _MASK_REMEDY))

    def _check(self) -> str:
        return f"weaktr data check coco14 {self.root} --split {self.name} lists all of them"

    def _image_folder(self) -> Path | None:
        """The folder of this split's images; one that only has subfolders does not count."""
        folder = image_folder(self.root, self.parts)
        return folder if folder is not None and listed(folder, IMAGE_SUFFIXES) else None

    def _mask_folder(self) -> Path | None:
        folder = mask_folder(self.root, self.parts)
        return folder if folder is not None and listed(folder, (".png",)) else None

    def _annotated(self) -> list[str]:
        """File names of the images with at least one annotation."""
        if self.declared is None:
            return [line.split()[0] for _, line in read_lines(self.list_file)]
        rows = self.declared.annotations
        return [image.file_name for image in self.declared.images if rows[image.id]]

    def _has_images(self) -> bool:
        """Whether every known image of the split is there and not empty."""
        if self.images is None:
            return False
        if self.declared is None and not self.list_file.is_file():
            return True
        names = [stem(name) for name in self._annotated()]
        present = Numbered(listed(self.images, IMAGE_SUFFIXES), names)
        files = (present.find(name) for name in names)
        return all(file is not None and is_whole(file) for file in files)

    def _undrawn(self, folder: Path) -> list[CocoImage]:
        """The images with objects, all of them outlined, of which `folder` holds no whole mask."""
        assert self.declared is not None
        return [
            image
            for image in filter(self.declared.is_outlined, self.declared.images)
            if self.declared.annotations[image.id]
            and not is_whole_png(mask_path(folder, image), (image.height, image.width))
        ]


_MASK_REMEDY = "move a mask folder from elsewhere that is not whole out of the way, and start again"
