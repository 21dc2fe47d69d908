"""``weaktr label CHECKPOINT IMAGES``: pseudo labels of own images."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import add_device, add_set, begin, class_names, keys, load_model
from weaktr.config import LabelConfig
from weaktr.progress import log
from weaktr.recipes import as_tree, identity, with_settings

HELP = """\
Pseudo labels for images with image-level labels: CAMs, threshold, CRF, palette PNGs.

IMAGES is a folder with labels.csv (image,labels with labels parted by ;), or one
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
    settings = with_settings(LabelConfig(), arguments.set)
    if arguments.checkpoint.is_dir():
        _label_stored_cams(arguments, settings)
    else:
        _label_images(arguments, settings)
    log.info("masks: %s", arguments.out / "masks")
    return 0


def _label_images(arguments: argparse.Namespace, settings: LabelConfig) -> None:
    from weaktr import data
    from weaktr.models import CamModel
    from weaktr.stages.label import label

    model, description = load_model(arguments.checkpoint, arguments.device)
    if not isinstance(model, CamModel):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-1 checkpoint, got stage 2")
    names = class_names(description, arguments.checkpoint)
    samples = data.folder(arguments.images, arguments.labels, classes=names).samples
    begin(arguments.out, arguments.checkpoint, identity(settings))
    label(model, samples, arguments.out, settings, dump_cams=arguments.dump_cams)


def _label_stored_cams(arguments: argparse.Namespace, settings: LabelConfig) -> None:
    from weaktr import data
    from weaktr.data.stored_maps import cam_files
    from weaktr.stages.label import AFTER_CAMS, label_stored

    cams = arguments.checkpoint
    used, default = as_tree(settings), as_tree(LabelConfig())
    useless = [key for key in default if key not in AFTER_CAMS and used[key] != default[key]]
    useless += ["--labels"] * bool(arguments.labels) + ["--dump-cams"] * arguments.dump_cams
    if useless:
        raise ValueError(
            f"{', '.join(useless)}: of no effect on CAMs that are there ({cams}); "
            f"expected {', '.join(AFTER_CAMS)}"
        )
    samples = data.unlabelled(arguments.images).samples
    files = cam_files(cams, [sample.name for sample in samples])
    after = {key: value for key, value in identity(settings).items() if key in AFTER_CAMS}
    begin(arguments.out, cams, after)
    label_stored(files, samples, arguments.out, settings)
