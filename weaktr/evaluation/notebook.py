"""Masks and CAMs that draw themselves in a notebook; everywhere else they are NumPy's arrays.

What is computed from them, cut out of them or pickled is a plain array: it may be of another size,
and its numbers may be no labels any more.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weaktr.data import DataError, Sample
from weaktr.data.classes import IGNORE, Classes, palette
from weaktr.data.masks import write_mask
from weaktr.data.photographs import read_photograph, reduced, working_size
from weaktr.evaluation.overlay import OPACITY, overlay
from weaktr.evaluation.pictures import heat_overlay
from weaktr.files import require_replaceable
from weaktr.messages import one_line
from weaktr.seals import SAVED, is_saved

#: Pixels of the longest side of a picture alone, and of one among others.
SIDE, SMALL_SIDE = 800, 260
#: The most pictures of one object, and names in one legend.
MOST_PICTURES, MOST_NAMES = 8, 24
#: Photographs that cannot be read are drawn in this grey.
GREY = 128


class OfPhotograph(np.ndarray):
    """An array [..., H, W] of a photograph.

    Attributes:
        photograph: uint8 [H, W, 3] RGB, or a `Sample`, whose `image` is the file; None = not known.
        classes: names; None = not known.
    """

    photograph: np.ndarray | Sample | None
    classes: tuple[str, ...] | None

    def __new__(
        cls,
        values: np.ndarray,
        photograph: np.ndarray | Sample | None = None,
        classes: Sequence[str] | None = None,
    ) -> OfPhotograph:
        array = np.asarray(values).view(cls)
        array.photograph = photograph
        array.classes = None if classes is None else tuple(classes)
        return array

    def __array_finalize__(self, _: object) -> None:
        self.photograph = self.classes = None  # of copies and views, which may be anything

    def __array_ufunc__(self, ufunc: Any, method: Any, *inputs: Any, **options: Any) -> Any:
        """See numpy; the result is a plain array."""
        if "out" in options:
            options["out"] = tuple(map(_plain, options["out"]))
        return getattr(ufunc, method)(*map(_plain, inputs), **options)

    def __getitem__(self, key: Any) -> Any:
        """See numpy; a part is a plain array, which shares the memory."""
        return _plain(self)[key]

    def __reduce__(self) -> Any:
        """Pickled is the plain array."""
        return _plain(self).__reduce__()

    def pixels(self, side: int | None = None) -> np.ndarray:
        """The photograph at this array's size, or with no side above `side`: uint8 [h, w, 3] RGB.

        One that is not known, or cannot be read any more, is grey.
        """
        height, width = working_size((self.shape[-2], self.shape[-1]), side)
        try:
            if isinstance(self.photograph, Sample):
                found = read_photograph(self.photograph, max(height, width)).pixels
            elif self.photograph is not None:
                found = reduced(self.photograph, max(height, width)).pixels
            else:
                return np.full((height, width, 3), GREY, np.uint8)
        except DataError:
            return np.full((height, width, 3), GREY, np.uint8)
        return np.asarray(Image.fromarray(found).resize((width, height)))


class Mask(OfPhotograph):
    """Labels uint8 [H, W] of a photograph: 0 = background, k + 1 = ``classes[k]``, 255 = ignored.

    In a notebook it is the photograph with the labels in colours over it, and their names.
    """

    def overlay(self, opacity: float = OPACITY) -> np.ndarray:
        """The labels in colours over the photograph, uint8 [H, W, 3]; see `overlay`."""
        return overlay(self.pixels(), _plain(self), opacity)

    def labels(self) -> dict[str, float]:
        """The names of the labels that occur -> their shares of the pixels, 0 to 1."""
        return {name: share for _, name, share in _occurring(self)}

    def save(self, path: str | Path) -> None:
        """Write it as weaktr writes masks: a PNG with the palette of PASCAL VOC.

        In a folder of results it counts as corrected by hand: no command replaces it.

        Raises:
            ValueError: there is another file, which weaktr did not write; this is no mask; or the
                name is not that of a PNG.
        """
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"{path}: expected a name with .png, which masks are written as")
        if not is_saved(Path(path)):
            require_replaceable(Path(path))
        write_mask(Path(path), _plain(self), blank=SAVED)

    def picture(self, side: int | None = None) -> np.ndarray:
        """`overlay` with no side above `side` pixels."""
        pixels = self.pixels(side)
        size = (pixels.shape[1], pixels.shape[0])
        small = Image.fromarray(_plain(self)).resize(size, Image.Resampling.NEAREST)
        return overlay(pixels, np.asarray(small))

    def _repr_html_(self) -> str | None:
        """The picture and its legend; None, for the plain text, where this is no mask any more."""
        if self.dtype != np.uint8 or self.ndim != 2 or not self.size:
            return None
        return figure(self.picture(SIDE), legend(self))


class Cams(OfPhotograph):
    """Class activation maps float32 [K, H, W] of a photograph, from 0 to 1.

    `classes` are the names of the K maps. In a notebook each is drawn over the photograph, from
    dark blue to yellow.
    """

    def _repr_html_(self) -> str | None:
        """The pictures; None, for the plain text, where these are no CAMs any more."""
        if self.dtype != np.float32 or self.ndim != 3 or not self.size:
            return None
        pixels = self.pixels(SMALL_SIDE)
        size = (pixels.shape[1], pixels.shape[0])
        names = self.classes or tuple(f"map {number}" for number in range(len(self)))
        pictures = []
        for name, heat in zip(names, _plain(self)[:MOST_PICTURES], strict=False):
            small = Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)
            pictures.append(figure(heat_overlay(pixels, np.asarray(small)), as_html(name)))
        return gallery(pictures, len(self) - len(pictures))


def legend(mask: Mask) -> str:
    """The colours, names and shares of a mask's labels, as HTML; the largest share first."""
    there = sorted(_occurring(mask), key=lambda label: -label[2])
    colours = palette()
    colours[IGNORE] = 255
    parts = []
    for label, name, share in there[:MOST_NAMES]:
        colour = "#{:02x}{:02x}{:02x}".format(*colours[label])
        parts.append(
            f'<span style="white-space:nowrap"><span style="background:{colour};border:1px solid '
            f'#888;display:inline-block;width:0.8em;height:0.8em"></span> '
            f"{as_html(name)} {share:.0%}</span>"
        )
    more = len(there) - MOST_NAMES
    return " &ensp; ".join([*parts, *([f"and {more} more"] if more > 0 else [])])


def figure(picture: np.ndarray, caption: str) -> str:
    """A picture, uint8 [H, W, 3], with a caption of HTML below it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        '<figure style="display:inline-block;margin:4px;vertical-align:top">'
        f'<img src="data:image/jpeg;base64,{data}" style="max-width:100%">'
        f'<figcaption style="max-width:{max(picture.shape[1], 160)}px;font-size:90%;'
        f'overflow-wrap:anywhere">{caption}</figcaption></figure>'
    )


def gallery(figures: Iterable[str], more: int = 0) -> str:
    """Figures beside each other, and how many `more` there are."""
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"<div>{''.join(figures)}</div>{rest}"


def masks_html(masks: Iterable[tuple[str, Mask]], more: int = 0) -> str:
    """Masks with the names of their photographs, small and beside each other.

    Args:
        masks: name -> mask; not more than are to be drawn.
        more: how many there are beside them.
    """
    figures = [
        figure(mask.picture(SMALL_SIDE), f"<b>{as_html(name)}</b><br>{legend(mask)}")
        for name, mask in masks
    ]
    return gallery(figures, more)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts as HTML."""
    lines = [
        "<tr>" + "".join(f"<{cell}>{as_html(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in [("th", head), *(("td", row) for row in rows)]
    ]
    return f"<table>{''.join(lines)}</table>"


def as_html(text: str) -> str:
    """Text of others as HTML, on one line."""
    return html.escape(one_line(text))


def _occurring(mask: Mask) -> list[tuple[int, str, float]]:
    """The labels of a mask, ascending: each with its name and its share of the pixels."""
    names = Classes(mask.classes).label_names if mask.classes else ("background",)
    ignored = "(ignored)" if "ignored" in names else "ignored"
    known = dict(enumerate(names)) | {IGNORE: ignored}
    counts = np.bincount(_plain(mask).ravel(), minlength=256)
    return [
        (label, known.get(label, f"class {label - 1}"), float(counts[label] / mask.size))
        for label in np.flatnonzero(counts).tolist()
    ]


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, OfPhotograph) else value
