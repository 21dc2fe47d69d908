"""``weaktr label MODEL IMAGES``: pseudo labels of own images."""

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
    show_masks,
    split_of,
)
from weaktr.config import LabelConfig

HELP = """\
Pseudo labels for images with image-level labels: CAMs, threshold, CRF, palette PNGs.

IMAGES is a folder with label files: train.csv with val.csv and test.csv (train_part.csv and
val_part.csv where weaktr init wrote these), or labels.csv where there is no train.csv. All
photographs that they list get a mask. Such a file has the columns image,labels with labels
separated by ;, or a 0/1 column for each class, or is a JSON; class names are those of the
checkpoint.

examples:
  weaktr label runs/voc/train_cam/model.safetensors photos/ --out labels/
  weaktr label model.safetensors photos/ --labels shop.csv --set crf=none --set threshold=0.3
  weaktr label model.safetensors photos/ --set threshold=auto
  weaktr label model.safetensors photos/ --emit confidence,cam
  weaktr label model.safetensors photos/ --teacher sam3/

Without any the model predicts the classes of each image (those above predict_above,
default 0.5); index.jsonl says which they were.

MODEL may also be a stage-2 checkpoint: then the label files, if there are some, limit the classes
that an image can have, and --set changes the settings of prediction.

Or a folder of CAMs (cams/ of --emit cam, or NAME.npy of the published code): another threshold
or CRF then takes no model and no labels.

  weaktr label labels/cams photos/ --set threshold=0.35 --out labels_35/

confidence/ holds how likely each pixel's label is by the scores; with --set confidence=stability
how many other thresholds, single scales and flips, and refinements agree with it.

--teacher DIR has masks of another tool, NAME.png with the numbers of ours. A class that the labels
of a photograph exclude is not taken from them, and one whose region hardly meets ours stays as we
found it; index.jsonl says how well each agrees.

OUT gets masks/, before_refinement/ with the masks before the CRF, index.jsonl, and
contact_sheet.png with some of the results. Started again, it goes on with the images that are
left. An image with a side above max_side (default 1024) is labelled at that size and its mask
enlarged. An image that cannot be read, or does not fit the memory, is named and left out; the exit
code is then 1.

Many photographs: IMAGES may also be tars in the layout of WebDataset (a folder of them, a pattern,
or an address that fsspec knows), a manifest, or with --dataset the root of COCO or VOC. Tars are
labelled one by one, each into a tar of masks and an index; the photographs of a folder likewise
where several processes share them or --shard-size is given. Whole shards are skipped at the next
start; `weaktr index OUT` counts, checks and finds what is in them.

  weaktr label model.safetensors 'shards/{000..127}.tar' --out labels/
  torchrun --nproc-per-node 8 --no-python \\
      weaktr label model.safetensors data/coco14 --dataset coco14 --out labels/
  weaktr label model.safetensors s3://bucket/shards --out labels/ --engine ray
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="MODEL",
        help="model.safetensors of either stage, or a folder of CAMs",
    )
    parser.add_argument(
        "images", metavar="IMAGES", help="folder of images, tars of them, or a manifest (.json)"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="CSV or JSON (default: train.csv, val.csv and test.csv of IMAGES together, else "
        "labels.csv); of tars also: inside them, beside them, none (the model predicts)",
    )
    parser.add_argument("--out", type=Path, default=Path("labels"), help="default: labels")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="DIR",
        help="masks of another tool, NAME.png each: used where they agree with ours",
    )
    parser.add_argument(
        "--emit",
        default="mask",
        metavar="LIST",
        help="what to write beside the masks: confidence (confidence/NAME.png, 0..255), "
        "cam (cams/NAME.npz, large); separated by commas",
    )
    parser.add_argument("--dump-cams", action="store_true", help="the same as --emit cam")
    add_dataset(parser, "train")
    add_exif(parser)
    add_shards(parser)
    add_profile(parser)
    add_device(parser)
    add_set(parser, f"settings of labelling ({keys(LabelConfig)})")


def run(arguments: argparse.Namespace) -> int:
    from weaktr.cli.sharded import is_sharded, run_sharded
    from weaktr.jobs.folder import Task, labelled

    check_files({"--profile": arguments.profile}, [arguments.out, Path(arguments.images)])
    emit = [name.strip() for name in arguments.emit.split(",") if name.strip()]
    task = Task(
        arguments.checkpoint,
        Path(arguments.images),
        arguments.out,
        arguments.set,
        emit=[*emit, "cam"] if arguments.dump_cams else emit,
        exif=arguments.exif,
        device=arguments.device,
        profile=arguments.profile,
        dataset=arguments.dataset,
        split=split_of(arguments, "train"),
        teacher=arguments.teacher,
    )
    labels = arguments.labels
    if is_sharded(arguments):
        return run_sharded("label", task, arguments, labels=labels or "auto")
    with labelled(task, None if labels is None else Path(labels)) as masks:
        return show_masks(masks)
