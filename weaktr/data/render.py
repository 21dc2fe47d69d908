"""Class masks drawn from COCO's instances JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from weaktr.data.classes import IGNORE
from weaktr.data.instances import CocoImage, Ids, Instances, read_instances
from weaktr.data.io import image_size, size_message
from weaktr.data.masks import write_mask
from weaktr.data.outlines import area, check_outline, paint, require_size, runs_of
from weaktr.data.parallel import usable_cores
from weaktr.data.problems import DataError, Problem
from weaktr.progress import track


def render_masks(
    instances_json: str | Path,
    out_dir: str | Path,
    *,
    ids: Ids = 90,
    images: str | Path | None = None,
    problems: list[Problem] | None = None,
) -> list[Path]:
    """Draw the class mask of every annotated image as a palette PNG.

    Large objects are drawn first and small ones on top, since where two outlines overlap the
    smaller one is nearly always in front (the tie on a shirt, the spoon in a cup). Crowds (groups
    outlined as a whole, ``iscrowd`` = 1) are drawn below everything as 255 = ignore: their
    outline covers gaps between the objects, so neither "class" nor "background" is true of each
    pixel.

    Args:
        instances_json: COCO's annotations.
        out_dir: where ``<file_name without suffix>.png`` are written; created if missing.
        ids: 90 draws COCO ids, 80 labels 1..80, "json" labels 1..C of the JSON's own categories.
        images: the folder of the photographs, whose sizes are then compared with the JSON's.
        problems: None = a fault is an error, raised when all other masks are drawn; a list = the
            faults are added to it. An image with a faulty annotation gets no mask.

    Returns:
        The files written. Images without any annotation get an all-background mask; images with
        an object that has a box but no outline get none.

    Raises:
        ValueError: `images` is no folder, or `ids` is none of these.
        DataError: the JSON cannot be read, its categories are not those of `ids`, or `problems` is
            None and there are faults.
    """
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"images: expected the folder of the photographs, got {str(images)!r}")
    numbering: Literal[80, 90] = 80 if ids == 80 else 90
    declared = read_instances(Path(instances_json), ids=ids, mask_ids=numbering)
    if declared.foreign:
        raise DataError(declared.problems)
    outlined = [*filter(declared.is_outlined, declared.images)]
    written, faults = draw_masks(declared, outlined, Path(out_dir), images)
    faults = [*declared.problems, *faults]
    if faults and problems is None:
        raise DataError(faults)
    if problems is not None:
        problems += faults
    return written


def draw_masks(
    declared: Instances,
    images: Sequence[CocoImage],
    folder: Path,
    photographs: str | Path | None = None,
) -> tuple[list[Path], list[Problem]]:
    """Draw the masks of some images into a folder, in threads; see `render_masks`.

    Returns:
        The files written, and the faults for which others were not; none is drawn where the JSON
        has categories that its numbering does not know.
    """
    if declared.foreign:
        return [], declared.problems

    def draw(image: CocoImage) -> Path | DataError:
        try:
            mask = draw_mask(declared, image, photographs)
        except DataError as error:
            return error
        path = mask_path(folder, image)
        write_mask(path, mask, durable=False)
        return path

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        try:
            drawn = [*track(pool.map(draw, images), "drawing masks", len(images))]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    faults = [fault for each in drawn if isinstance(each, DataError) for fault in each.problems]
    return [each for each in drawn if isinstance(each, Path)], faults


def mask_path(folder: str | Path, image: CocoImage) -> Path:
    """Where the mask of an image is, in a folder of masks."""
    return (Path(folder) / image.file_name).with_suffix(".png")


def draw_mask(
    declared: Instances, image: CocoImage, photographs: str | Path | None = None
) -> np.ndarray:
    """uint8 [H, W] labels of an image, in the numbering of `declared`.

    Args:
        declared: the JSON.
        image: one of its images.
        photographs: their folder. Where it holds this one, that must have the size in the JSON.

    Raises:
        DataError: the size or an outline is faulty; lists all faults of the image.
    """
    if faults := [*_faults(declared, image, photographs)]:
        raise DataError(faults)
    size = require_size(image.height, image.width)
    entries = declared.annotations[image.id]
    objects = [(entry, runs_of(entry.segmentation, size)) for entry in entries]
    columns = np.zeros(size[::-1], np.uint8)
    for entry, runs in sorted(objects, key=lambda o: (not o[0].iscrowd, -area(o[1]))):
        label = declared.numbering.index_of_category[entry.category_id] + 1
        paint(columns, runs, IGNORE if entry.iscrowd else label)
    return np.ascontiguousarray(columns.T)


def drawing_faults(declared: Instances, photographs: str | Path) -> list[Problem]:
    """The faults for which images with outlines cannot be drawn, see `draw_mask`; none is drawn."""
    images = (image for image in declared.images if declared.annotations[image.id])
    outlined = filter(declared.is_outlined, images)
    return [fault for image in outlined for fault in _faults(declared, image, photographs)]


def _faults(
    declared: Instances, image: CocoImage, photographs: str | Path | None
) -> Iterator[Problem]:
    """Why an image cannot be drawn."""
    json_file = str(declared.path)
    try:
        size = require_size(image.height, image.width)
    except ValueError as error:
        message, kind = f"{error} ({image.file_name})", "size that no photograph has"
        yield Problem(json_file, image.where, message, kind=kind)
        return
    photograph = None if photographs is None else Path(photographs) / image.file_name
    if photograph is not None and photograph.is_file():
        with suppress(DataError):  # of a photograph that cannot be read: its readers say so
            real = image_size(photograph)
            if real != size:
                message = f"{photograph}: {size_message('annotations', size, real)}"
                kind = "size that is not the photograph's"
                yield Problem(json_file, image.where, message, kind=kind)
    for entry in declared.annotations[image.id]:
        try:
            if entry.iscrowd not in (0, 1):
                raise ValueError(f"expected iscrowd to be 0 or 1, got {entry.iscrowd!r:.60}")
            check_outline(entry.segmentation, size)
        except ValueError as error:
            kind = "outline that cannot be drawn"
            yield Problem(json_file, entry.name, str(error), kind=kind)
