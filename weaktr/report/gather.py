"""A run, or a folder of masks -> everything that the report shows, as plain values."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from weaktr.data.io import read_stored_labels
from weaktr.data.parallel import ordered_map
from weaktr.data.photographs import read_photograph, reduced
from weaktr.jobs.masked import Masked, masked_in
from weaktr.messages import first_lines, one_line
from weaktr.outputs import RECIPE, fingerprint
from weaktr.progress import track
from weaktr.recipes import dump_recipe, load_recipe
from weaktr.report import cams, facts, pictures, words
from weaktr.report.colours import colours
from weaktr.report.photographs import (
    LEAST_AREA,
    LEAST_BACKGROUND,
    Photo,
    chosen,
    class_rows,
    in_turn,
    photos_of,
    strips,
)
from weaktr.stages.run import Run

log = logging.getLogger("weaktr")

#: How many photographs the page holds at most.
MOST_PHOTOGRAPHS = 2500
#: Longest side of a photograph in the page, by how many there are, so that 2,000 take below 20 MB.
SIDES = ((300, 384), (1000, 256), (MOST_PHOTOGRAPHS, 192))
TITLES = {"label": "Pseudo labels", "predict": "Predictions"}

Strips = list[dict[str, list[Photo]]]


def report_of(folder: Path, beside: Path | None = None) -> dict[str, Any]:
    """Everything that the report shows.

    Args:
        folder: of a run, or ``--out`` of ``weaktr label`` or ``weaktr predict``.
        beside: a folder that gets photographs and masks at up to `pictures.FULL_SIDE` pixels;
            None = there are only small ones, in the page.

    Raises:
        ValueError: see `masked_in`.
    """
    all_masked = masked_in(folder)
    unusable = [why for masked in all_masked for why in masked.masks.unusable.values()]
    for line in first_lines(unusable):
        log.warning("left out: %s", line)
    run = Run(load_recipe(folder / RECIPE), folder) if (folder / RECIPE).is_file() else None
    classes = run.train_images.classes if run else all_masked[0].manifest.classes
    sets = [photos_of(masked) for masked in all_masked]
    tables = [class_rows(own, classes.num_labels) for own in sets]
    best: list[Strips] = [
        [strips(own, row.label) for row in table] for own, table in zip(sets, tables, strict=True)
    ]
    shown = chosen([*chain(*sets)], in_turn([*chain(*best)]), MOST_PHOTOGRAPHS)
    maps = _cams(run, shown, in_turn([*chain(*best)]), everything=beside is not None)
    of_labels = colours((photo.given or photo.shown) for photo in chain(*sets))
    pages = dict(_pages(shown, maps, of_labels, beside))
    of_run = _of_run(run)
    return {
        "id": fingerprint(str(folder.resolve())),
        "name": one_line(folder.resolve().name),
        "made": datetime.now().astimezone().isoformat(timespec="minutes"),
        "labels": ["background", *map(one_line, classes.names)],
        "colours": of_labels.tolist(),
        "least_area": LEAST_AREA,
        "least_background": LEAST_BACKGROUND,
        **of_run,
        "words": words.in_words(
            words.case_of(
                str(folder),
                {
                    masked.maker: words.MaskSet(own, table)
                    for masked, own, table in zip(all_masked, sets, tables, strict=True)
                },
                run,
                scored=bool(of_run["scores"]),
            )
        ),
        "facts": facts.facts_of_run(run) if run else facts.facts_of_command(folder),
        "sets": [
            _set(masked, own, table, strip, [*pages])
            for masked, own, table, strip in zip(all_masked, sets, tables, best, strict=True)
        ],
        "cams": {"are_possible": cams.has_cams(run), "photographs": len(maps)},
        "unread": len(shown) - len(pages),
        "photographs": [*pages.values()],
    }


def _of_run(run: Run | None) -> dict[str, Any]:
    """What a run has beside masks; of a command's folder none of it."""
    return {
        "recipe_name": run.recipe.name if run else "",
        "recipe": dump_recipe(run.recipe) if run else "",
        "changed": facts.changed_settings(run.recipe) if run else {},
        "stages": facts.stage_rows(run) if run else [],
        "scores": facts.score_rows(run) if run else [],
        "curves": facts.curves(run) if run else [],
    }


def _set(
    masked: Masked, photos: Sequence[Photo], table: Sequence[Any], best: Strips, pages: list[int]
) -> dict[str, Any]:
    """The masks of one kind, and their classes with the places of photographs in the page."""
    place = {key: index for index, key in enumerate(pages)}
    classes = []
    for row, strip in zip(table, best, strict=True):
        places = {
            kind: [place[id(photo)] for photo in own if id(photo) in place]
            for kind, own in strip.items()
        }
        classes.append(asdict(row) | {"strips": places})
    sure = [photo.confidence for photo in photos if photo.confidence is not None]
    return {
        "maker": masked.maker,
        "title": TITLES[masked.maker],
        "masks": len(photos),
        "edited": sum(photo.is_edited for photo in photos),
        "without": len(masked.masks.without),
        "unusable": len(masked.masks.unusable),
        "doubts": Counter(photo.doubt for photo in photos if photo.doubt),
        "confidence": sum(sure) / len(sure) if sure else None,
        "classes": classes,
    }


def _cams(
    run: Run | None, shown: Sequence[Photo], first: Iterator[Photo], *, everything: bool
) -> cams.CamsOf:
    """The CAMs of photographs: of all, or, of the worst first, as many as take no long time."""
    if run is None or not cams.has_cams(run):
        return {}
    most = None if everything else cams.most_cams(run)
    there = {id(photo) for photo in shown}
    in_order = {id(p): p for p in chain(first, sorted(shown, key=Photo.rank)) if id(p) in there}
    return cams.small_cams(run, list(in_order.values())[:most])


def _pages(
    photos: Sequence[Photo], maps: cams.CamsOf, of_labels: np.ndarray, beside: Path | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The `id` of each photograph and what is shown of it; unreadable ones are left out.

    `place` is where it stands in an order that begins with the worst.
    """
    places = {id(photo): place for place, photo in enumerate(sorted(photos, key=Photo.rank))}
    side = next(side for most, side in SIDES if len(photos) <= most)

    def page(photo: Photo) -> dict[str, Any] | None:
        try:
            pixels = read_photograph(photo.sample, pictures.FULL_SIDE if beside else side).pixels
            labels = read_stored_labels(photo.mask).astype(np.uint8)
        except (OSError, ValueError) as error:
            log.debug("not in the report: %s", error)
            return None
        small = reduced(pixels, side).pixels
        values = _plain(photo) | {
            "place": places[id(photo)],
            "picture": pictures.photograph_url(small),
            "mask": pictures.mask_url(labels, small.shape[:2], of_labels),
            "cams": [
                [label, pictures.photograph_url(grey)] for label, grey in maps.get(id(photo), ())
            ],
        }
        if beside is not None:
            name = f"{photo.maker}/{photo.sample.name}"
            pictures.write_photograph(beside / f"{name}.jpg", pixels)
            pictures.write_mask_picture(beside / f"{name}.png", labels, pixels.shape[:2], of_labels)
            values["file"] = quote(os.fsencode(f"{beside.name}/{name}"))
        return values

    pages = track(ordered_map(page, photos), "report", len(photos), is_minor=True)
    for photo, values in zip(photos, pages, strict=True):
        if values is not None:
            yield id(photo), values


def _plain(photo: Photo) -> dict[str, Any]:
    """What is known of a photograph, as plain values; the largest class first."""
    areas = sorted(photo.areas.items(), key=lambda item: (item[0] == 0, -item[1]))
    return {
        "name": one_line(photo.sample.name),
        "maker": photo.maker,
        "size": [*photo.size],
        "labels": [[label, area, photo.confidence_of.get(label)] for label, area in areas],
        "given": None if photo.given is None else sorted(photo.given),
        "missing": sorted(photo.missing),
        "extra": sorted(photo.extra),
        "doubt": photo.doubt,
        "confidence": None if photo.confidence is None else round(photo.confidence, 4),
        "iou": None if photo.iou is None else round(photo.iou, 2),
        "is_edited": photo.is_edited,
    }
