"""``weaktr label CHECKPOINT IMAGES``: pseudo labels of own images."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import add_device, add_set, keys
from weaktr.config import LabelConfig
from weaktr.progress import log
from weaktr.recipes import as_tree, identity, with_settings

HELP = """\
Pseudo labels for images with image-level labels: CAMs, threshold, CRF, palette PNGs.

IMAGES is a folder with labels.csv (image,labels with labels separated by ;), or one
with a 0/1 column for each class; class names are those of the checkpoint.

examples:
  weaktr label runs/voc/train_cam/model.safetensors photos/ --out labels/
  weaktr label model.safetensors photos/ --labels shop.csv --set crf=none --set threshold=0.3

Instead of a checkpoint, a folder of CAMs (cams/ of --dump-cams, or NAME.npy of the published
code): another threshold or CRF then takes no model and no labels.csv.

  weaktr label labels/cams photos/ --set threshold=0.35 --out labels_35/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="stage-1 model.safetensors, or a folder of CAMs",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("--labels", type=Path, help="CSV or JSON (default IMAGES/labels.csv)")
    parser.add_argument("--out", type=Path, default=Path("labels"), help="default: labels")
    parser.add_argument("--dump-cams", action="store_true", help="also write cams/NAME.npz (large)")
    add_device(parser)
    add_set(parser, f"settings of labelling ({keys(LabelConfig)})")


def run(arguments: argparse.Namespace) -> int:
    from weaktr import data
    from weaktr.data.stored_maps import StoredCams
    from weaktr.inference.cams import CamsOfModel, CamSource
    from weaktr.models import CamModel, checkpoints
    from weaktr.models.precision import choose_device
    from weaktr.outputs import begin_masks
    from weaktr.stages.label import AFTER_CAMS, label

    settings, source = with_settings(LabelConfig(), arguments.set), arguments.checkpoint
    inputs = identity(settings)
    cams: CamSource
    if source.is_dir():
        default = as_tree(LabelConfig())
        ineffective = [
            key
            for key, value in as_tree(settings).items()
            if key not in AFTER_CAMS and value != default[key]
        ]
        if arguments.labels:
            ineffective.append("--labels")
        if arguments.dump_cams:
            ineffective.append("--dump-cams")
        if ineffective:
            raise ValueError(
                f"{', '.join(ineffective)}: of no effect on CAMs that are there ({source}); "
                f"expected {', '.join(AFTER_CAMS)}"
            )
        inputs = {key: value for key, value in inputs.items() if key in AFTER_CAMS}
        samples = data.unlabelled(arguments.images).samples
        cams = StoredCams(source, samples)
    else:
        model, description = checkpoints.load(source, choose_device(arguments.device))
        if not isinstance(model, CamModel):
            raise ValueError(f"{source}: expected a stage-1 checkpoint, got stage 2")
        names = checkpoints.class_names(description, source)
        samples = data.folder(arguments.images, arguments.labels, classes=names).samples
        cams = CamsOfModel(model, settings)
    begin_masks(arguments.out, source, inputs)
    label(cams, samples, arguments.out, settings, dump_cams=arguments.dump_cams)
    log.info("masks: %s", arguments.out / "masks")
    return 0
