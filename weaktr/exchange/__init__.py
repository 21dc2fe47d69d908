"""Masks for other tools: a table of formats, and photographs written in one of them.

To add a format: a file here with a function `write`, and its line in `FORMATS`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weaktr import tars
from weaktr.data import IGNORE, Classes
from weaktr.data.parallel import ordered_map
from weaktr.exchange import coco, cvat, fiftyone, hf, label_studio, labelme, yolo
from weaktr.exchange.items import (
    Item,
    Options,
    Report,
    Source,
    put_photograph,
    read_item,
)
from weaktr.progress import track

__all__ = ["FORMATS", "Format", "Item", "Options", "Report", "Source", "export_masks"]


@dataclass(frozen=True)
class Format:
    """How masks are written for a tool.

    Args:
        write: takes photographs one by one, their classes, the folder of the export, what was
            chosen, and the report; writes all files but the photographs.
        opening: how the tool opens the folder, which stands as ``{out}``, ``{root}`` with all that
            is above it.
        opening_apart: the same where the photographs stay where they are; "" = no different.
        needs: packages, of weaktr's extra of the same name.
        holds_images: the format has the photographs in its own files.
        has_labels: whether it keeps image-level labels.
        has_ignore: whether it keeps ignored pixels.
        by_parts: whether each part of a mask has an entry of its own.
    """

    write: Callable[[Iterable[Item], Classes, Path, Options, Report], None]
    opening: str
    opening_apart: str = ""
    needs: tuple[str, ...] = ()
    holds_images: bool = False
    has_labels: bool = True
    has_ignore: bool = False
    by_parts: bool = True

    def opened(self, out: Path, options: Options) -> str:
        """How the tool opens an export."""
        way = (options.images == "none" and self.opening_apart) or self.opening
        return way.format(out=out, root=out.resolve())


_LABEL_STUDIO = (
    "a project with {{out}}/config.xml as labelling interface, started with "
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}; in its settings a source storage of the kind "
    "Local files with the path {path}, added and not synchronised, or no photograph is shown; "
    "then Import: {{out}}/tasks.json"
)
FORMATS: dict[str, Format] = {
    "coco": Format(
        coco.write,
        "pycocotools.coco.COCO('{out}/annotations.json'), photographs in {out}/images",
        "pycocotools.coco.COCO('{out}/annotations.json'), photographs in your folder",
    ),
    "yolo-seg": Format(
        yolo.write,
        "yolo segment train data={out}/data.yaml model=...",
        "put your photographs, or links to them, into {out}/images, by the paths that they have in "
        "their folder; then yolo segment train data={out}/data.yaml model=...",
        has_labels=False,
    ),
    "labelme": Format(labelme.write, "labelme {out}/images"),
    "cvat": Format(
        cvat.write,
        "a task with the photographs of {out}/images, then Upload annotations: CVAT 1.1, "
        "{out}/annotations.xml",
        "a task with your photographs, by the paths that they have in their folder, then Upload "
        "annotations: CVAT 1.1, {out}/annotations.xml",
    ),
    "label-studio": Format(
        label_studio.write,
        _LABEL_STUDIO.format(root="{root}", path="{root}/images"),
        _LABEL_STUDIO.format(root="/", path="of the folder of your photographs"),
        by_parts=False,
    ),
    "fiftyone": Format(
        fiftyone.write,
        "fiftyone datasets create --name NAME --dataset-dir {out} "
        "--type fiftyone.types.FiftyOneDataset",
        has_ignore=True,
        by_parts=False,
    ),
    "hf": Format(
        hf.write,
        "datasets.load_dataset('{out}')",
        needs=("datasets", "pyarrow"),
        holds_images=True,
        has_ignore=True,
        by_parts=False,
    ),
}


def require_packages(name: str) -> Format:
    """The format of this name.

    Raises:
        ValueError: packages that it needs are missing.
    """
    chosen = FORMATS[name]
    missing = [package for package in chosen.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"--to {name} needs {', '.join(missing)}: pip install 'weaktr[{name}]' (or "
            f"pip install {' '.join(missing)})"
        )
    return chosen


def export_masks(
    sources: Sequence[Source], classes: Classes, chosen: Format, folder: Path, options: Options
) -> Report:
    """Write photographs with their masks in a format.

    Args:
        sources: the photographs; of those that cannot be read the report says why.
        classes: of their masks.
        chosen: one of `FORMATS`.
        folder: empty.
        options: see `Options`.

    Raises:
        ValueError: the format cannot hold the name of a class.
        OSError: a file cannot be written.
    """
    report = Report()
    images = "copy" if chosen.holds_images else options.images

    def read(source: Source) -> Item | str:
        try:
            return read_item(source, images)
        except (OSError, ValueError) as error:
            return f"{source.sample.name}: {error}"

    def items() -> Iterator[Item]:
        for item in track(ordered_map(read, sources), "export", len(sources)):
            if isinstance(item, str):
                report.left_out.append(item)
                continue
            if images == "none" and item.is_turned:
                report.notes["photographs are turned by viewers, their masks are not"] += 1
            elif images == "none" and tars.archive_of(item.source.sample.image) is not None:
                report.notes["photographs are in tars, which other programs do not open"] += 1
            elif images != "none" and not chosen.holds_images:
                put_photograph(item, folder)
            if not chosen.has_ignore and (item.mask == IGNORE).any():
                report.notes["masks have ignored pixels (255), which become background"] += 1
            report.count(item)
            yield item

    chosen.write(items(), classes, folder, options, report)
    return report
