"""Draws docs/crf_effect.png: what each setting of the dense CRF does, on a generated scene.

python docs/crf_effect.py [PATH]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from weaktr.data.sources.scene_drawing import NAMES, render_scene
from weaktr.evaluation.pictures import Panel, Strip, draw
from weaktr.ops.dense_crf.presets import DenseCRF

SCENE, SIZE, CELL = 13, 160, 16
#: Of the PNG, so that it stays small.
WIDTH, COLOURS = 1100, 224
#: Every row changes one number of gaussian=(3, 3) or bilateral=(30, 13, 6).
ROWS = {
    "gaussian sxy": [("sxy 1 px", {"gaussian": (1, 3)}),
                     ("sxy 3 px", {"gaussian": (3, 3)}),
                     ("sxy 16 px", {"gaussian": (16, 3)})],
    "bilateral sxy": [("sxy 5 px", {"bilateral": (5, 13, 6)}),
                      ("sxy 30 px", {"bilateral": (30, 13, 6)}),
                      ("sxy 120 px", {"bilateral": (120, 13, 6)})],
    "bilateral srgb": [("srgb 3", {"bilateral": (30, 3, 6)}),
                       ("srgb 13", {"bilateral": (30, 13, 6)}),
                       ("srgb 60", {"bilateral": (30, 60, 6)})],
    "bilateral compat": [("compat 1", {"bilateral": (30, 13, 1)}),
                         ("compat 6", {"bilateral": (30, 13, 6)}),
                         ("compat 40", {"bilateral": (30, 13, 40)})],
}  # fmt: skip


def coarse_labels(mask: np.ndarray) -> np.ndarray:
    """The most frequent label of every cell, as coarse as a CAM, with one pixel in twenty wrong."""
    cells = mask.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).swapaxes(1, 2).reshape(-1, CELL**2)
    votes = np.array([np.bincount(cell).argmax() for cell in cells], np.uint8)
    labels = votes.reshape(SIZE // CELL, -1).repeat(CELL, 0).repeat(CELL, 1)
    rng = np.random.default_rng(0)
    return np.where(rng.uniform(size=mask.shape) < 0.05, rng.choice(votes, mask.shape), labels)


def main(path: Path) -> None:
    image, mask, _ = render_scene(SCENE, size=SIZE)
    labels = coarse_labels(mask)
    values, compact = np.unique(labels, return_inverse=True)
    strips = []
    for name, columns in ROWS.items():
        panels = [Panel(f"given: {(labels == mask).mean():.0%} right", labels)]
        for title, settings in columns:
            refined = DenseCRF(**settings).refine_labels(image, compact, len(values))
            right = (values[refined] == mask).mean()
            panels.append(Panel(f"{title}: {right:.0%}", values[refined]))
        strips.append(Strip(name, image, panels))
    draw(strips, ["background", *NAMES], path, "One setting at a time, each kernel by itself")
    picture = Image.open(path).convert("RGB")
    small = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)))
    small.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
