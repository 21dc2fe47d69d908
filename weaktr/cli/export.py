"""``weaktr export CHECKPOINT``: a model for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import check_files
from weaktr.progress import log

HELP = """\
Write a checkpoint for other runtimes: ONNX, or a program for torch.export.load.

The file takes any batch and image size, carries class names and normalisation as metadata, and
is run against the model on random images of several sizes before it is written. Stage 2 gives
logits per pixel, stage 1 the refined CAMs of all classes per patch.

examples:
  weaktr export runs/voc/train_seg/model.safetensors --onnx weaktr.onnx
  weaktr export runs/voc/train_cam/model.safetensors --torch-export cams.pt2
  weaktr export model.safetensors --onnx fixed.onnx --size 480 480
"""
#: The largest side of ``--size``, in pixels.
MOST_SIDE = 65_536


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    from weaktr.config import PredictConfig
    from weaktr.export import DESCRIPTION, FORMAT, export_onnx, export_program
    from weaktr.files import require_replaceable
    from weaktr.inference.probabilities import for_ensemble
    from weaktr.models import Segmenter, checkpoints
    from weaktr.stages.carried import of_other_stage

    targets = {export_onnx: arguments.onnx, export_program: arguments.torch_export}
    if not any(targets.values()):
        raise ValueError("nothing to write; give --onnx FILE, --torch-export FILE, or both")
    check_files({"--onnx": arguments.onnx, "--torch-export": arguments.torch_export})
    for path, mark in ((arguments.onnx, FORMAT), (arguments.torch_export, DESCRIPTION)):
        if path is not None:
            require_replaceable(path, mark.encode())
    model, description = checkpoints.load(arguments.checkpoint)
    names = list(checkpoints.class_names(description, arguments.checkpoint) or ())
    if not names:
        raise ValueError(f"{arguments.checkpoint}: this checkpoint does not name its classes")
    if isinstance(model, Segmenter):
        model, names = for_ensemble(model, arguments.ensemble), ["background", *names]
    elif arguments.ensemble != "plain":
        hint = of_other_stage(PredictConfig, checkpoints.weights_file(arguments.checkpoint))
        raise ValueError(f"--ensemble: only stage 2 has a decoder; leave it out for CAMs{hint}")
    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    if size is not None and not all(model.patch_size <= side <= MOST_SIDE for side in size):
        raise ValueError(
            f"--size: expected two sides from a patch, {model.patch_size} pixels, to {MOST_SIDE}, "
            f"got {size[0]} {size[1]}"
        )
    for write, path in targets.items():
        if path is not None:
            check = write(model, path, names, size=size)
            shapes = ", ".join("x".join(map(str, shape)) for shape in check.shapes)
            log.info(
                "%s: differs from the model by at most %.1e (outputs up to %.1e) on BxHxW %s",
                path, check.difference, check.magnitude, shapes,
            )  # fmt: skip
    return 0
