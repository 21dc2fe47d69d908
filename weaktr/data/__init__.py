"""Data sets: their description (`Manifest`), their faults (`check`), how they are read.

Imports no torch: what training makes of them is in `datasets` and `transforms`.
"""

from __future__ import annotations

from weaktr.data.check import check
from weaktr.data.classes import COCO80, COCO90, IGNORE, VOC, Classes, palette
from weaktr.data.io import read_image, read_labels, read_mask, read_rgb
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.names import only, read_names
from weaktr.data.problems import DataError, Problem
from weaktr.data.render import render_masks
from weaktr.data.sources import SOURCES, load_manifest
from weaktr.data.sources.coco14 import coco14
from weaktr.data.sources.folder import folder, unlabelled
from weaktr.data.sources.voc12 import voc12

__all__ = [
    "COCO80",
    "COCO90",
    "IGNORE",
    "SOURCES",
    "VOC",
    "Classes",
    "DataError",
    "Manifest",
    "Problem",
    "Sample",
    "check",
    "coco14",
    "folder",
    "load_manifest",
    "only",
    "palette",
    "read_image",
    "read_labels",
    "read_mask",
    "read_names",
    "read_rgb",
    "render_masks",
    "unlabelled",
    "voc12",
]
