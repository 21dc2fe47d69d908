"""The commands that carry models across borders: ``weaktr import | export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from weaktr.data.classes import VOC
from weaktr.progress import console

if TYPE_CHECKING:
    from weaktr.models.published import Imported

Arguments = argparse.Namespace

IMPORT_HELP = """\
Turn a released WeakTr checkpoint (.pth, stage 1 or 2) into one that weaktr works with.

Stage, classes, depth, backbone, patch size and decoder are recognised by the tensors. A
variant.yml beside FILE is read by itself: it tells DeiT from AugReg (WeakTr-†), which have
the same tensors but other image statistics. Nothing pickled in FILE is run.

examples:
  weaktr import checkpoint_best_mIoU.pth --out released/cam
  weaktr import vit_small/checkpoint.pth --variant vit_small/variant.yml --out released/seg
  weaktr predict released/seg/model.safetensors photos/ --out masks/
"""


def add_import(parser: argparse.ArgumentParser) -> None:
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


def import_command(arguments: Arguments) -> int:
    from weaktr.models.published import Choices, import_checkpoint

    names = None
    if arguments.classes is not None:
        lines = arguments.classes.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    choices = Choices(arguments.variant, arguments.normalization, arguments.pool, names)
    _tell(import_checkpoint(arguments.file, arguments.out, choices))
    return 0


def _tell(done: Imported) -> None:
    """What was recognised, and what to do next."""
    from weaktr.models import CamModel

    model, config = done.model, done.model.config
    sizes = config["backbone_args"]
    stage1 = isinstance(model, CamModel)
    names = ", ".join(done.classes.names[:3])
    facts = {
        "stage": "1, class activation maps" if stage1 else f"2, decoder {config['decoder']}",
        "classes": f"{len(done.classes)} ({names}, ...)",
        "backbone": f"{config['backbone']}: depth {sizes['depth']}, width {sizes['embed_dim']}, "
        f"{sizes['num_heads']} heads, patch {model.patch_size}",
        "trained at": f"{config['image_size']} pixels",
        "mean, std": " / ".join(
            ", ".join(f"{value:.3g}" for value in values) for values in model.normalization
        ),
        "variant.yml": "none" if done.source is None else str(done.source),
        **{key: str(value) for key, value in done.facts.items()},
        "written": str(done.path),
    }
    if stage1:
        facts["fusion"] = f"pool {config['pool']}, reduction {config['reduction']:g}"
    table = Table(title=f"imported {done.facts['file']}", title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    console.print(table)
    command = ["weaktr", "label" if stage1 else "predict", str(done.path), "IMAGES"]
    for key, setting in _settings(done, stage1).items():
        command += ["--set", f"{key}={setting}"]
    console.print(f"next: {' '.join(command)}", soft_wrap=True, markup=False)


def _settings(done: Imported, stage1: bool) -> dict[str, object]:
    """Settings for this model that are not the defaults (VOC's, 480 pixel windows)."""
    settings: dict[str, object] = {}
    if done.classes.names != VOC.names:
        settings["crf"] = "coco_cam" if stage1 else "coco_seg"
        if stage1:
            settings |= {"scales": "[1.0,0.8,1.2]", "threshold": 0.42}
    given = {"window": done.variant.window, "stride": done.variant.stride}
    return settings | {key: value for key, value in given.items() if value is not None}
