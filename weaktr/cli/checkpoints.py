"""The commands that carry models across borders: ``weaktr import | export``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from weaktr.config import CamModelConfig
from weaktr.data.classes import VOC
from weaktr.progress import console, log

if TYPE_CHECKING:
    from weaktr.models.released.importing import Imported

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
EXPORT_HELP = """\
Write a checkpoint for other runtimes: ONNX, or a program for torch.export.load.

The file takes any batch and image size, carries class names and normalisation as metadata, and
is run against the model on random images of several sizes before it is written. Stage 2 gives
logits per pixel, stage 1 the refined CAMs of all classes per patch.

examples:
  weaktr export runs/voc/train_seg/model.safetensors --onnx weaktr.onnx
  weaktr export runs/voc/train_cam/model.safetensors --torch-export cams.pt2
  weaktr export model.safetensors --onnx fixed.onnx --size 480 480
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
    from weaktr.models.released.importing import Choices, import_checkpoint

    names = None
    if arguments.classes is not None:
        lines = arguments.classes.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    choices = Choices(arguments.variant, arguments.normalization, arguments.pool, names)
    _tell(import_checkpoint(arguments.file, arguments.out, choices))
    return 0


def _tell(done: Imported) -> None:
    """What was recognised, and what to do next."""
    model, config = done.model, done.model.config
    sizes = config.backbone_args
    stage1 = isinstance(config, CamModelConfig)
    names = ", ".join(done.classes.names[:3])
    facts = {
        "stage": "1, class activation maps"
        if isinstance(config, CamModelConfig)
        else f"2, decoder {config.decoder}",
        "classes": f"{len(done.classes)} ({names}, ...)",
        "backbone": f"{config.backbone}: depth {sizes['depth']}, width {sizes['embed_dim']}, "
        f"{sizes['num_heads']} heads, patch {model.patch_size}",
        "trained at": f"{config.image_size} pixels",
        "mean, std": " / ".join(
            ", ".join(f"{value:.3g}" for value in values) for values in model.normalization
        ),
        "variant.yml": "none" if done.source is None else str(done.source),
        **{key: str(value) for key, value in done.facts.items()},
        "written": str(done.path),
    }
    if isinstance(config, CamModelConfig):
        facts["fusion"] = f"pool {config.pool}, reduction {config.reduction:g}"
    table = Table(title=f"imported {done.facts['file']}", title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    console.print(table)
    command = ["weaktr", "label" if stage1 else "predict", str(done.path), "IMAGES"]
    for key, setting in _settings(done, stage1).items():
        command += ["--set", f"{key}={setting}"]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True, markup=False)


def _settings(done: Imported, stage1: bool) -> dict[str, object]:
    """Settings for this model that are not the defaults (VOC's, 480 pixel windows)."""
    settings: dict[str, object] = {}
    if done.classes.names != VOC.names:
        settings["crf"] = "coco_cam" if stage1 else "coco_seg"
        if stage1:
            settings |= {"scales": "[1.0,0.8,1.2]", "threshold": 0.42}
    given = {"window": done.variant.window, "stride": done.variant.stride}
    return settings | {key: value for key, value in given.items() if value is not None}


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model.safetensors of stage 1 or 2")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write ONNX (extra 'export')")
    parser.add_argument("--torch-export", type=Path, metavar="FILE", help="write a .pt2 program")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="one fixed image size, for runtimes that want it (default: any size)",
    )
    parser.add_argument(
        "--ensemble",
        choices=("plain", "published"),
        default="plain",
        help="published: also the decoder's output before its last block, 'early' (stage 2)",
    )


def export_command(arguments: Arguments) -> int:
    from weaktr.export import export_onnx, export_program
    from weaktr.inference.probabilities import for_ensemble
    from weaktr.models import Segmenter, checkpoints

    targets = {export_onnx: arguments.onnx, export_program: arguments.torch_export}
    if not any(targets.values()):
        raise ValueError("nothing to write; give --onnx FILE, --torch-export FILE, or both")
    model, info = checkpoints.load(arguments.checkpoint)
    if "classes" not in info:
        raise ValueError(f"{arguments.checkpoint}: this checkpoint does not name its classes")
    names = info["classes"]["names"]
    if isinstance(model, Segmenter):
        model, names = for_ensemble(model, arguments.ensemble), ["background", *names]
    elif arguments.ensemble != "plain":
        raise ValueError("--ensemble: only stage 2 has a decoder; leave it out for CAMs")
    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    for write, path in targets.items():
        if path is not None:
            check = write(model, path, names, size=size)
            shapes = ", ".join("x".join(map(str, shape)) for shape in check.shapes)
            log.info(
                "%s: differs from the model by at most %.1e (outputs up to %.1e) on BxHxW %s",
                path, check.difference, check.magnitude, shapes,
            )  # fmt: skip
    return 0
