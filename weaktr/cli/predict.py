"""``weaktr predict CHECKPOINT IMAGES``: masks of plain images."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import (
    about,
    add_device,
    add_exif,
    add_profile,
    add_set,
    carried_settings,
    check_files,
    exif_of,
    keys,
    photograph_places,
    show_masks,
)
from weaktr.config import PredictConfig
from weaktr.progress import log
from weaktr.recipes import identity, with_settings

HELP = """\
Masks for plain images: sliding windows over scales and flips, then the CRF.

Writes OUT/masks, and OUT/before_refinement with the masks before the CRF; `weaktr eval OUT TRUTH`
scores both. Started again, it goes on with the images that are left. An image with a side above
max_side (default 1024) is predicted at that size and its mask enlarged. An image that cannot be
read, or does not fit the memory, is named and left out; the exit code is then 1.

For a test set without masks, --archive writes what the PASCAL VOC server takes
(results/VOC2012/Segmentation/comp6_test_cls/NAME.png).

examples:
  weaktr predict runs/voc/train_seg/model.safetensors photos/ --out masks/
  weaktr predict model.safetensors photos/ --set ratios=[1.0] --set flip=false --set crf=none
  weaktr predict model.safetensors VOC2012/JPEGImages --names ImageSets/Segmentation/val.txt
  weaktr predict model.safetensors VOC2012/JPEGImages --names ImageSets/Segmentation/test.txt \\
      --archive results.tgz --comp comp6
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="stage-2 model.safetensors")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="default: predictions"
    )
    parser.add_argument("--names", type=Path, help="only these images: names, one a line")
    parser.add_argument(
        "--ensemble",
        choices=("plain", "published"),
        help="decoder's output, or 0.8 times its earlier one added (default: published)",
    )
    parser.add_argument(
        "--archive", type=Path, metavar="FILE", help="also write a .tgz or .tar for the VOC server"
    )
    parser.add_argument(
        "--comp",
        choices=("comp5", "comp6"),
        default="comp6",
        help="of the archive: trained on VOC's data alone, or on more (default: comp6)",
    )
    parser.add_argument(
        "--dump-scores", action="store_true", help="also write scores/NAME.npz (large)"
    )
    add_exif(parser)
    add_profile(parser)
    add_device(parser)
    add_set(parser, f"settings of prediction ({keys(PredictConfig)})")


def run(arguments: argparse.Namespace) -> int:
    from weaktr import data
    from weaktr.data.masks import MaskFolder
    from weaktr.evaluation.voc_server import ARCHIVE_MARK, require_suffix, write_voc_archive
    from weaktr.files import require_replaceable
    from weaktr.inference.probabilities import for_ensemble
    from weaktr.models import Segmenter, checkpoints
    from weaktr.models.precision import choose_device
    from weaktr.outputs import claimed_for_masks
    from weaktr.refine import choose_refiners, paths_of
    from weaktr.stages.check_models import require_views
    from weaktr.stages.predict import predict

    results = {"--archive": arguments.archive, "--profile": arguments.profile}
    check_files(results, [arguments.out, arguments.images])
    if arguments.archive is not None:
        require_suffix(arguments.archive)
        require_replaceable(arguments.archive, ARCHIVE_MARK)
    arguments.set += [f"ensemble={arguments.ensemble}"] if arguments.ensemble else []
    with_settings(PredictConfig(), arguments.set)  # a slip is said before a model is read
    model, description = checkpoints.load(arguments.checkpoint, choose_device(arguments.device))
    if not isinstance(model, Segmenter):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-2 checkpoint, got stage 1")
    settings = carried_settings(PredictConfig, arguments, description)
    require_views(settings)
    refiners = choose_refiners(settings)  # what is wrong is said before anything is written
    samples = data.unlabelled(arguments.images, exif=arguments.exif).samples
    if arguments.names is not None:
        samples = data.only(samples, data.read_names(arguments.names))
    out, names = arguments.out, [] if arguments.names is None else [arguments.names]
    weights = checkpoints.weights_file(arguments.checkpoint)
    emit = ["scores"] if arguments.dump_scores else []
    inputs = identity(settings) | exif_of(arguments)
    for_ensemble(model, settings.ensemble)  # it fits
    images = [*photograph_places(arguments.images), *paths_of(refiners)]
    class_names = checkpoints.class_names(description, arguments.checkpoint)
    noted = about("predict", arguments, class_names)
    with claimed_for_masks(out, weights, inputs, names, images, noted):
        report = predict(model, samples, out, settings, emit=emit, profile=arguments.profile)
        code = show_masks(report, out, samples, class_names)
        if arguments.archive is not None and report.left_out:
            log.warning("%s: not written, it needs a mask of every image", arguments.archive)
        elif arguments.archive is not None:
            masks = MaskFolder(out)
            write_voc_archive(arguments.archive, masks, [s.name for s in samples], arguments.comp)
            log.info("for the VOC server: %s", arguments.archive)
    return code
