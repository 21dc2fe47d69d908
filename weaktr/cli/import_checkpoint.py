"""``weaktr import FILE``: a released checkpoint becomes a native one."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from weaktr.config import CamModelConfig, SegModelConfig
from weaktr.messages import few
from weaktr.progress import console

if TYPE_CHECKING:
    from weaktr.models.released.import_checkpoint import Imported

HELP = """\
Turn a released WeakTr checkpoint (.pth, stage 1 or 2) into one that weaktr works with.

Stage, classes, depth, backbone, patch size and decoder are recognised by the tensors. A
variant.yml beside FILE is read by itself: it tells DeiT from AugReg (WeakTr-†), which have
the same tensors but other image statistics. Nothing pickled in FILE is run.

examples:
  weaktr import checkpoint_best_mIoU.pth --out released/cam
  weaktr import vit_small/checkpoint.pth --variant vit_small/variant.yml --out released/seg
  weaktr predict released/seg/model.safetensors photos/ --out masks/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the released .pth")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets model.safetensors, model.json"
    )
    parser.add_argument(
        "--variant", type=Path, help="the training's variant.yml (default: the one beside FILE)"
    )
    parser.add_argument(
        "--normalization",
        choices=("deit", "vit", "eva02"),
        help="stage 2: image statistics of ImageNet, of AugReg (all 0.5), of CLIP",
    )
    parser.add_argument("--pool", choices=("avg", "max"), help="stage 1: how attention was pooled")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="TXT",
        help="class names, one a line, without background (default: VOC's or COCO's by number)",
    )


def run(arguments: argparse.Namespace) -> int:
    from weaktr.data.layout import read_lines
    from weaktr.files import require_replaceable
    from weaktr.models import CamModel
    from weaktr.models.released.import_checkpoint import PUBLISHED, Choices, import_checkpoint

    of_an_import = f'"{PUBLISHED}":'  # in the description, which stands as JSON inside the weights
    require_replaceable(arguments.out / "model.json", of_an_import.encode())
    escaped = of_an_import.replace('"', '\\"')
    require_replaceable(arguments.out / "model.safetensors", escaped.encode())
    names = None
    if arguments.classes is not None:
        names = [line for _, line in read_lines(arguments.classes)]
    choices = Choices(arguments.variant, arguments.normalization, arguments.pool, names)
    imported = import_checkpoint(arguments.file, arguments.out, choices)
    stage = 1 if isinstance(imported.model, CamModel) else 2

    title = Text(f"imported {imported.facts['file']}")
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in _facts(imported).items():
        table.add_row(key, Text(value))
    console.print(table)

    command = ["weaktr", "label" if stage == 1 else "predict", str(imported.path), "IMAGES"]
    for key, setting in _settings(imported, stage).items():
        command += ["--set", f"{key}={setting}"]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True)
    return 0


def _facts(imported: Imported) -> dict[str, str]:
    """The facts that were recognised, for the table."""
    model, config = imported.model, imported.model.config
    sizes = config.backbone_args
    kind = "1, class activation maps"
    if isinstance(config, SegModelConfig):
        kind = f"2, decoder {config.decoder}"
    facts = {
        "stage": kind,
        "classes": f"{len(imported.classes)} ({few(imported.classes.names)})",
        "backbone": f"{config.backbone}: depth {sizes['depth']}, width {sizes['embed_dim']}, "
        f"{sizes['num_heads']} heads, patch {model.patch_size}",
        "trained at": f"{config.image_size} pixels",
        "mean, std": " / ".join(
            ", ".join(f"{value:.3g}" for value in values) for values in model.normalization
        ),
        "variant.yml": "none" if imported.source is None else str(imported.source),
        **{key: str(value) for key, value in imported.facts.items()},
        "written": str(imported.path),
    }
    if isinstance(config, CamModelConfig):
        facts["fusion"] = f"pool {config.pool}, reduction {config.reduction:g}"
    return facts


def _settings(imported: Imported, stage: int) -> dict[str, object]:
    """The settings for this model that differ from the defaults (VOC's, windows of 480 pixels)."""
    from weaktr.data import VOC

    settings: dict[str, object] = {}
    if imported.classes.names != VOC.names:
        settings["crf"] = "coco_cam" if stage == 1 else "coco_seg"
        if stage == 1:
            settings |= {"scales": "[1.0,0.8,1.2]", "threshold": 0.42}
    windows = {"window": imported.variant.window, "stride": imported.variant.stride}
    return settings | {key: value for key, value in windows.items() if value is not None}
