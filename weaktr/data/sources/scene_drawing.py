"""How a generated scene is drawn: textured shapes of eight classes over cluttered backgrounds.

Every scene shows one to three objects. A class is a silhouette together with its own kind of
texture (a disc with stripes is a drum, a triangle with checks a sail ...), in random colours, so
that colour does not identify a class. Objects are tilted, stretched, shaded, noisy and partly
hidden; the background consists of gradients, multi-scale noise, blobs, lines and flat silhouettes
of the same classes, so that an outline without its texture is background. Masks are exact.

A scene depends on (seed, split, index) alone, not on how many scenes are drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = np.ndarray  # float32 throughout
Rng = np.random.Generator

NAMES = ("drum", "sail", "wheel", "star", "cross", "kite", "moon", "wall")
SUPERSAMPLE = 2  # drawn at twice the size, then averaged down
MIN_VISIBLE = 0.6  # an object placed later may hide at most the rest of an earlier one
TILT = 0.35  # an object leans at most this far, in radians
PLACEMENTS = 8  # tries to place an object before it is left out

# ---------------------------------------------------------------------------------- silhouettes
# Signed distance in units of the object's radius, negative inside; x, y in the same units.


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.62


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.7) - 0.3


def _star(x: Array, y: Array) -> Array:
    sector = math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, y) + sector, 2 * sector) - sector)
    radius = np.hypot(x, y)
    tip, notch = 1.15, 0.62  # the edge runs from (tip, 0) to the notch at `sector`
    ex, ey = notch * math.cos(sector) - tip, notch * math.sin(sector)
    return ((radius * np.cos(angle) - tip) * ey - radius * np.sin(angle) * ex) / math.hypot(ex, ey)


def _cross(x: Array, y: Array) -> Array:
    ax, ay = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(ax, ay) - 0.95, np.minimum(ax, ay) - 0.36)


def _kite(x: Array, y: Array) -> Array:
    return np.abs(x) * 0.8 + np.abs(y) * 0.6 - 0.72


def _moon(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 1, 0.7 - np.hypot(x - 0.68, y))


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


# ------------------------------------------------------------------------------------- textures
# Which of two colours, as a number around 0 (its sign decides); u, v in periods of the texture.


def _stripes(u: Array, v: Array) -> Array:
    return np.sin(2 * math.pi * u)


def _checks(u: Array, v: Array) -> Array:
    return 1.6 * np.sin(math.pi * u) * np.sin(math.pi * v)


def _dots(u: Array, v: Array) -> Array:
    return 4 * (0.32 - np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5))


def _rings(u: Array, v: Array) -> Array:
    return np.sin(2 * math.pi * np.hypot(u, v))


def _zigzag(u: Array, v: Array) -> Array:
    return np.sin(2 * math.pi * (v + np.abs(u * 0.7 - np.floor(u * 0.7) - 0.5) * 1.6))


def _lattice(u: Array, v: Array) -> Array:
    p, q = 0.6 * (u + v), 0.6 * (u - v)
    line = np.minimum(np.abs(p - np.floor(p) - 0.5), np.abs(q - np.floor(q) - 0.5))
    return 5 * (line - 0.15)


def _twill(u: Array, v: Array) -> Array:
    return np.sin(1.6 * math.pi * (u + v))


def _bricks(u: Array, v: Array) -> Array:
    row = np.floor(v * 1.2)
    across = u * 0.6 + 0.5 * np.mod(row, 2)
    joint = np.minimum(np.abs(across - np.round(across)) / 0.6, 0.5 - np.abs(v * 1.2 - row - 0.5))
    return 5 * (joint - 0.13)


Shape = Callable[[Array, Array], Array]
Texture = Callable[[Array, Array], Array]
CLASSES: tuple[tuple[Shape, Texture], ...] = (
    (_disc, _stripes),
    (_triangle, _checks),
    (_ring, _dots),
    (_star, _rings),
    (_cross, _zigzag),
    (_kite, _lattice),
    (_moon, _twill),
    (_square, _bricks),
)

# ---------------------------------------------------------------------------------------- helpers


def _noise(rng: Rng, shape: tuple[int, ...], cells: int) -> Array:
    """Smooth noise of about unit spread: a `cells` x `cells` random grid, bicubic to `shape`."""
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _colour(rng: Rng) -> Array:
    """A random RGB colour in [0, 1], neither black nor white."""
    return rng.uniform(0.06, 0.94, 3).astype(np.float32)


def _two_colours(rng: Rng, contrast: float) -> tuple[Array, Array]:
    """A darker and a lighter random colour, the means of RGB at least `contrast` <= 0.5 apart."""
    pairs = rng.uniform(0.06, 0.94, (64, 2, 3)).astype(np.float32)
    pairs = np.take_along_axis(pairs, pairs.mean(2).argsort(1)[..., None], 1)
    apart = np.diff(pairs.mean(2), axis=1)[:, 0]
    first, second = pairs[np.minimum(apart, contrast).argmax()]  # the first that is far enough
    return first, second


def _mix(a: Array, b: Array, weight: Array) -> Array:
    """`a` where weight [H, W] is 0, `b` where it is 1."""
    return a + (b - a) * weight[..., None]


def _step(x: Array) -> Array:
    """0 below -1/2, 1 above 1/2, a ramp between: an anti-aliased edge for distances in pixels."""
    return np.clip(x + 0.5, 0, 1)


@dataclass(frozen=True)
class _Pose:
    """Where an object stands: centre and radius in pixels, rotation in radians, stretch."""

    x: float
    y: float
    radius: float
    angle: float
    stretch: float

    def frame(self, grid: Array) -> tuple[Array, Array]:
        """Pixel coordinates [2, H, W] (x, y) to the object's own, in radii."""
        dx, dy = (grid[0] - self.x) / self.radius, (grid[1] - self.y) / self.radius
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return (dx * cos + dy * sin) * self.stretch, (dy * cos - dx * sin) / self.stretch


def _pose(rng: Rng, size: int, diameters: tuple[float, float]) -> _Pose:
    """A random pose; `diameters` is the range of the diameter as a part of the image's side."""
    radius = rng.uniform(*diameters) * size / 2
    low, high = 0.75 * radius, size - 0.75 * radius
    return _Pose(
        x=rng.uniform(low, high),
        y=rng.uniform(low, high),
        radius=radius,
        angle=rng.uniform(-TILT, TILT),
        stretch=math.exp(rng.uniform(-0.12, 0.12)),
    )


# ------------------------------------------------------------------------------------- background


def _background(rng: Rng, grid: Array) -> Array:
    """Clutter [H, W, 3] in [0, 1]: a gradient, noise of three scales, blobs, lines, silhouettes.

    The smooth part is drawn at the final size and enlarged to the H x W of `grid` [2, H, W].
    """
    full = grid.shape[-1]
    coarse = grid[:, ::SUPERSAMPLE, ::SUPERSAMPLE]
    angle = rng.uniform(0, 2 * math.pi)
    ramp = (coarse[0] * math.cos(angle) + coarse[1] * math.sin(angle)) / full
    image = _mix(_colour(rng), _colour(rng), _step((ramp - ramp.mean()) * 0.9))
    for cells in (4, 9, 24):
        image = _mix(image, _colour(rng), 0.45 * _step(_noise(rng, image.shape, cells) - 0.3))
    small = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    canvas = small.resize((full, full), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas, "RGBA")
    for _ in range(rng.integers(2, 7)):
        _draw_blob(rng, draw, full)
    for _ in range(rng.integers(3, 10)):
        _draw_line(rng, draw, full)
    image = np.asarray(canvas, np.float32) / 255
    for _ in range(rng.integers(2, 5)):
        image = _silhouette(rng, image, grid)
    return image


def _rgba(rng: Rng, opacity: tuple[float, float]) -> tuple[int, ...]:
    red, green, blue = (int(255 * part) for part in _colour(rng))
    return red, green, blue, int(255 * rng.uniform(*opacity))


def _draw_blob(rng: Rng, draw: ImageDraw.ImageDraw, size: int) -> None:
    x, y = rng.uniform(0, size, 2)
    width, height = rng.uniform(0.03, 0.16, 2) * size
    draw.ellipse((x - width, y - height, x + width, y + height), _rgba(rng, (0.4, 0.9)))


def _draw_line(rng: Rng, draw: ImageDraw.ImageDraw, size: int) -> None:
    points = [tuple(point) for point in rng.uniform(-0.1, 1.1, (3, 2)) * size]
    width = int(rng.integers(1, max(2, size // 32) + 1))
    draw.line(points, _rgba(rng, (0.4, 0.95)), width, joint="curve")


def _silhouette(rng: Rng, image: Array, grid: Array) -> Array:
    """One of the classes' outlines in a flat or softly shaded colour: a distractor."""
    pose = _pose(rng, grid.shape[-1], (0.15, 0.5))
    x, y = pose.frame(grid)
    shape = CLASSES[rng.integers(len(CLASSES))][0]
    cover = _step(-shape(x, y) * pose.radius) * rng.uniform(0.5, 0.95)
    paint = _mix(_colour(rng), _colour(rng), rng.uniform(0, 0.7) * _step(x))
    return _mix(image, paint, cover)


# ---------------------------------------------------------------------------------------- objects


def _paint(rng: Rng, kind: int, pose: _Pose, grid: Array) -> Array:
    """The object's surface [H, W, 3]: its texture in two colours, lit from a random side."""
    x, y = pose.frame(grid)
    size = grid.shape[-1]
    period = max(rng.uniform(0.085, 0.135) * size / pose.radius, 0.3)
    texture = CLASSES[kind][1]
    shift, drop = (0.0, 0.0) if texture is _rings else rng.uniform(0, 1, 2).tolist()
    weight = np.clip(0.5 + 1.2 * texture(x / period + shift, y / period + drop), 0, 1)
    surface = _mix(*_two_colours(rng, 0.35), weight)
    light = rng.uniform(0, 2 * math.pi)
    shade = 0.9 + rng.uniform(0.1, 0.3) * (x * math.cos(light) + y * math.sin(light))
    return surface * shade[..., None]


def _place(rng: Rng, kind: int, grid: Array, owners: Array) -> tuple[_Pose, Array] | None:
    """A pose whose object leaves enough of the earlier ones to be seen, and its cover [H, W].

    owners: [K, H, W] what each object placed so far covers of each pixel, in [0, 1].
    """
    areas = owners.sum((1, 2))
    for _ in range(PLACEMENTS):
        pose = _pose(rng, grid.shape[-1], (0.28, 0.6))
        cover = _step(-CLASSES[kind][0](*pose.frame(grid)) * pose.radius)
        if np.all((owners * (1 - cover)).sum((1, 2)) >= MIN_VISIBLE * areas):
            return pose, cover
    return None


def render_scene(
    index: int, *, size: int = 64, seed: int = 0, split: str = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, ...]]:
    """Draw one scene.

    Args:
        index: number of the scene within its split, >= 0.
        size: side of the square image in pixels, >= 16.
        seed: of the data set, >= 0.
        split: name of the split; every split has scenes of its own.

    Returns:
        image uint8 [size, size, 3] RGB; mask uint8 [size, size], 0 = background, k + 1 = class k,
        the object that covers most of the pixel; labels, the 0-based classes seen, ascending.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value, low in (("index", index, 0), ("size", size, 16), ("seed", seed, 0)):
        if value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    full = size * SUPERSAMPLE
    side = np.arange(full, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(side, side))
    image = _background(rng, grid)
    kinds = rng.choice(len(CLASSES), rng.integers(1, 4), replace=False)
    owners = np.zeros((0, full, full), np.float32)
    drawn: list[int] = []
    for kind in kinds.tolist():
        placed = _place(rng, kind, grid, owners)
        if placed is None:
            continue
        pose, cover = placed
        image = _mix(image, _paint(rng, kind, pose, grid), cover)
        owners = np.concatenate([owners * (1 - cover), cover[None]])
        drawn.append(kind)
    return _finish(rng, image, owners, drawn, size)


def _finish(
    rng: Rng, image: Array, owners: Array, drawn: list[int], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, ...]]:
    """Average down, light the whole scene, add sensor noise; the mask by majority."""
    cells = (size, SUPERSAMPLE, size, SUPERSAMPLE)
    small = image.reshape(*cells, 3).mean((1, 3))
    light = 1 + rng.uniform(0.02, 0.12) * _noise(rng, small.shape, 3)
    noise = rng.uniform(0.01, 0.04) * rng.standard_normal(small.shape, np.float32)
    pixels = np.clip(small * light[..., None] + noise, 0, 1)
    parts = owners.reshape(-1, *cells).mean((2, 4))
    parts = np.concatenate([1 - parts.sum(0, keepdims=True), parts])
    mask = np.array([0, *(kind + 1 for kind in drawn)], np.uint8)[parts.argmax(0)]
    labels = tuple(int(label) - 1 for label in np.unique(mask) if label)
    return np.round(pixels * 255).astype(np.uint8), mask, labels
