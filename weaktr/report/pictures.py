"""Photographs, masks and CAMs as small pictures inside the page, or as files beside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, features

from weaktr.data.masks import png_bytes
from weaktr.files import write_bytes
from weaktr.outputs import keep
from weaktr.seals import BLANK, is_sealed, sealed

#: Of lossy pictures, 0 to 100.
QUALITY = 55
#: Longest side of pictures in files beside the page.
FULL_SIDE = 1024


def photograph_url(pixels: np.ndarray) -> str:
    """Pixels uint8 [h, w, 3] or [h, w] as a data URL: WebP, or JPEG where Pillow has none."""
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, kind, quality=QUALITY, method=4)
    return _url(kind, buffer.getvalue())


def mask_url(labels: np.ndarray, size: tuple[int, int], colours: np.ndarray) -> str:
    """A mask uint8 [H, W] at another size (h, w) as a PNG whose background is transparent.

    Args:
        colours: uint8 [256, 3] RGB, of each label.
    """
    buffer = io.BytesIO()
    _coloured(labels, size, colours).save(buffer, "PNG", optimize=True, transparency=0)
    return _url("png", buffer.getvalue())


def write_photograph(path: Path, pixels: np.ndarray) -> None:
    """Write pixels uint8 [h, w, 3] as a sealed JPEG; a file that somebody changed is kept."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, comment=BLANK)
    _write(path, sealed(buffer.getvalue()))


def write_mask_picture(
    path: Path, labels: np.ndarray, size: tuple[int, int], colours: np.ndarray
) -> None:
    """Write a mask, as `mask_url` has it, as a sealed PNG; likewise."""
    picture = _coloured(labels, size, colours)
    picture.info["transparency"] = 0
    _write(path, png_bytes(picture))


def _coloured(labels: np.ndarray, size: tuple[int, int], colours: np.ndarray) -> Image.Image:
    """A mask in the colours of its labels, without those that are not needed."""
    height, width = size
    picture = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette(colours[: int(labels.max(initial=0)) + 1].tobytes())
    return picture


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and not is_sealed(path):
        keep(path)
    write_bytes(path, content, durable=False)


def _url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
