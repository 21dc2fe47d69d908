"""``weaktr predict CHECKPOINT IMAGES``: masks of plain images."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import (
    add_dataset,
    add_device,
    add_exif,
    add_profile,
    add_set,
    add_shards,
    check_files,
    keys,
    refuse_idle,
    show_masks,
    split_of,
)
from weaktr.config import PredictConfig
from weaktr.messages import few
from weaktr.progress import log

HELP = """\
Masks for plain images: sliding windows over scales and flips, then the CRF.

Writes OUT/masks, and OUT/before_refinement with the masks before the CRF; `weaktr eval OUT TRUTH`
scores both. Started again, it goes on with the images that are left. An image with a side above
max_side (default 1024) is predicted at that size and its mask enlarged. An image that cannot be
read, or does not fit the memory, is named and left out; the exit code is then 1.

IMAGES may also be tars, a manifest, or with --dataset the root of COCO or VOC, and several
processes may share them: see `weaktr label --help`.

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
    parser.add_argument(
        "images", metavar="IMAGES", help="folder of images, tars of them, or a manifest (.json)"
    )
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
        help="of --archive: trained on VOC's data alone, or on more (default: comp6)",
    )
    parser.add_argument(
        "--dump-scores", action="store_true", help="also write scores/NAME.npz (large)"
    )
    add_dataset(parser, "val")
    add_exif(parser)
    add_shards(parser)
    add_profile(parser)
    add_device(parser)
    add_set(parser, f"settings of prediction ({keys(PredictConfig)})")


def run(arguments: argparse.Namespace) -> int:
    from weaktr.cli.sharded import is_sharded, run_sharded
    from weaktr.data import VOC
    from weaktr.evaluation.numbering import is_numbered_as
    from weaktr.evaluation.voc_server import ARCHIVE_MARK, require_suffix, write_voc_archive
    from weaktr.files import require_replaceable
    from weaktr.jobs.folder import Task, predicted

    archive, comp = arguments.archive, arguments.comp or "comp6"
    refuse_idle(archive is None, "expected with --archive alone", comp=arguments.comp)
    results = {"--archive": archive, "--profile": arguments.profile}
    check_files(results, [arguments.out, Path(arguments.images)])
    if archive is not None:
        require_suffix(archive)
        require_replaceable(archive, ARCHIVE_MARK)
    ensemble = [f"ensemble={arguments.ensemble}"] if arguments.ensemble else []
    task = Task(
        arguments.checkpoint,
        Path(arguments.images),
        arguments.out,
        arguments.set + ensemble,
        emit=["scores"] if arguments.dump_scores else [],
        exif=arguments.exif,
        device=arguments.device,
        profile=arguments.profile,
        dataset=arguments.dataset,
        split=split_of(arguments, "val"),
    )
    if is_sharded(arguments):
        if archive is not None:
            raise ValueError("--archive: expected work on a folder without shards")
        return run_sharded("predict", task, arguments, names=arguments.names)
    with predicted(task, arguments.names) as masks:
        code = show_masks(masks)
        if archive is not None and code:
            log.warning("%s: not written, it needs a mask of every image", archive)
        elif archive is not None:
            write_voc_archive(archive, arguments.out, list(masks), comp)
            log.info("for the VOC server: %s", archive)
            if masks.classes is not None and not is_numbered_as(masks.classes, VOC.names):
                told = (
                    "the server takes the numbers in masks for VOC's 20 classes; here they are %s"
                )
                log.warning(told, few(masks.classes))
    return code
