"""``weaktr label MODEL IMAGES``: pseudo labels of own images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from weaktr.config import LabelConfig, PredictConfig
from weaktr.messages import few
from weaktr.progress import log
from weaktr.recipes import as_tree, identity

if TYPE_CHECKING:
    from weaktr.data import Sample

HELP = """\
Pseudo labels for images with image-level labels: CAMs, threshold, CRF, palette PNGs.

IMAGES is a folder with labels.csv, or train.csv, which comes first (image,labels with labels
separated by ;, or a 0/1 column for each class); class names are those of the checkpoint.

examples:
  weaktr label runs/voc/train_cam/model.safetensors photos/ --out labels/
  weaktr label model.safetensors photos/ --labels shop.csv --set crf=none --set threshold=0.3
  weaktr label model.safetensors photos/ --set threshold=auto
  weaktr label model.safetensors photos/ --emit confidence,cam

Without labels.csv the model predicts the classes of each image (those above predict_above,
default 0.5); index.jsonl says which they were.

MODEL may also be a stage-2 checkpoint: then labels.csv, if there is one, limits the classes that
an image can have, and --set changes the settings of prediction.

Or a folder of CAMs (cams/ of --emit cam, or NAME.npy of the published code): another threshold
or CRF then takes no model and no labels.csv.

  weaktr label labels/cams photos/ --set threshold=0.35 --out labels_35/

confidence/ holds how likely each pixel's label is by the scores; with --set confidence=stability
how many other thresholds, single scales and flips, and refinements agree with it.

OUT gets masks/, before_refinement/ with the masks before the CRF, index.jsonl, and
contact_sheet.png with some of the results. Started again, it goes on with the images that are
left. An image with a side above max_side (default 1024) is labelled at that size and its mask
enlarged. An image that cannot be read, or does not fit the memory, is named and left out; the exit
code is then 1.
"""
#: What ``--emit`` takes.
EMITTED = ("mask", "confidence", "cam")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="MODEL",
        help="model.safetensors of either stage, or a folder of CAMs",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("--labels", type=Path, help="CSV or JSON (default IMAGES/labels.csv)")
    parser.add_argument("--out", type=Path, default=Path("labels"), help="default: labels")
    parser.add_argument(
        "--emit",
        default="mask",
        metavar="LIST",
        help="what to write beside the masks: confidence (confidence/NAME.png, 0..255), "
        "cam (cams/NAME.npz, large); separated by commas",
    )
    parser.add_argument("--dump-cams", action="store_true", help="the same as --emit cam")
    add_exif(parser)
    add_profile(parser)
    add_device(parser)
    add_set(parser, f"settings of labelling ({keys(LabelConfig)})")


def run(arguments: argparse.Namespace) -> int:
    emit = emitted(arguments)
    check_files({"--profile": arguments.profile}, [arguments.out, arguments.images])
    if arguments.checkpoint.is_dir():
        return _label_stored_cams(arguments, emit)
    return _label_by_model(arguments, emit)


def emitted(arguments: argparse.Namespace) -> list[str]:
    """What ``--emit`` and ``--dump-cams`` ask for, without the masks, which are always written.

    Raises:
        ValueError: ``--emit`` names something else.
    """
    names = [name.strip() for name in arguments.emit.split(",") if name.strip()]
    for name in names:
        if name not in EMITTED:
            raise ValueError(f"--emit: expected some of {', '.join(EMITTED)}; got {name!r}")
    names += ["cam"] if arguments.dump_cams else []
    return sorted(set(names) - {"mask"})


def _label_stored_cams(arguments: argparse.Namespace, emit: list[str]) -> int:
    """Threshold and refine CAMs that are there."""
    from weaktr import data
    from weaktr.inference.stored_cams import StoredCams
    from weaktr.models.precision import choose_device
    from weaktr.outputs import claimed_for_masks
    from weaktr.refine import choose_refiners, paths_of
    from weaktr.stages.carried import carried_of_cams
    from weaktr.stages.label import AFTER_CAMS, label, require_features
    from weaktr.stages.threshold import require_way

    folder = arguments.checkpoint
    carried = carried_of_cams(folder, AFTER_CAMS, arguments.set)
    settings = carried.settings
    arguments.exif = arguments.exif or carried.exif
    log.info("%s", carried.in_words())
    refiners = choose_refiners(settings)  # what is wrong is said before anything is written
    default = as_tree(LabelConfig())
    ineffective = [
        key
        for key, value in as_tree(settings).items()
        if key not in AFTER_CAMS and value != default[key]
    ]
    ineffective += ["--labels"] if arguments.labels else []
    if "cam" in emit:
        ineffective.append("--dump-cams" if arguments.dump_cams else "--emit cam")
    if ineffective:
        raise ValueError(
            f"{', '.join(ineffective)}: of no effect on CAMs that are there ({folder}); "
            f"expected {', '.join(AFTER_CAMS)}"
        )
    inputs = {key: value for key, value in identity(settings).items() if key in AFTER_CAMS}
    samples = data.unlabelled(arguments.images, exif=arguments.exif).samples
    cams = StoredCams(folder, samples, choose_device(arguments.device))
    require_features(refiners, cams)
    require_way(settings, cams)
    out, identities = arguments.out, inputs | exif_of(arguments)
    images = [*photograph_places(arguments.images), *paths_of(refiners)]
    noted = about("label", arguments, None)
    with claimed_for_masks(out, folder, identities, [], images, noted):
        report = label(cams, samples, out, settings, emit=emit, profile=arguments.profile)
        return show_masks(report, out, samples, None)


def _samples(arguments: argparse.Namespace, names: Sequence[str] | None) -> tuple[Sample, ...]:
    """The images: with image-level labels where there is a file of them, else without.

    Raises:
        ValueError: a file that may be meant as the labels, but has another name.
    """
    from weaktr import data
    from weaktr.data.problems import Findings
    from weaktr.data.sources.folder import NOT_LISTED, label_file

    images = arguments.images
    if arguments.labels is None and label_file(images) is None:
        patterns = ("[!.]*.csv", "[!.]*.json")
        if others := sorted(file.name for kind in patterns for file in images.glob(kind)):
            raise ValueError(
                f"{images}: expected labels.csv for image-level labels, found {others[0]}: give it "
                "by --labels, or move it away to let the model predict what each image shows"
            )
        log.warning(
            "%s: no labels.csv and no --labels, so the model predicts what each image shows", images
        )
        return data.unlabelled(images, exif=arguments.exif).samples
    if names is None:
        raise ValueError(f"{arguments.checkpoint}: this checkpoint does not name its classes")
    found = Findings()
    options: dict[str, Any] = {"classes": names, "exif": arguments.exif}
    samples = data.folder(images, arguments.labels, problems=found, **options).samples
    if found.count("error"):
        samples = data.folder(images, arguments.labels, **options).samples  # raises
    if count := found.counts["warning", NOT_LISTED]:
        first = [Path(problem.file).name for problem in found if problem.kind == NOT_LISTED]
        log.warning(
            "%d images in %s are not in the list of labels, so they get no mask (%s)",
            count, images, few(first),
        )  # fmt: skip
    return samples


def _label_by_model(arguments: argparse.Namespace, emit: list[str]) -> int:
    """By a stage-1 model: CAMs of the image-level labels, or of the classes that it predicts.

    By a stage-2 model: predictions among the image-level labels, where there are any.
    """
    from weaktr.inference.labels import uses_features
    from weaktr.inference.patch_cams import cams_of
    from weaktr.inference.probabilities import for_ensemble
    from weaktr.models import Segmenter, checkpoints
    from weaktr.models.precision import choose_device
    from weaktr.outputs import claimed_for_masks
    from weaktr.refine import choose_refiners, paths_of
    from weaktr.stages.check_models import require_views
    from weaktr.stages.label import label
    from weaktr.stages.predict import predict
    from weaktr.stages.threshold import require_way

    out, profile = arguments.out, arguments.profile
    model, description = checkpoints.load(arguments.checkpoint, choose_device(arguments.device))
    names = checkpoints.class_names(description, arguments.checkpoint)
    if isinstance(model, Segmenter):
        choices = carried_settings(PredictConfig, arguments, description)
    else:
        settings = carried_settings(LabelConfig, arguments, description)
    samples = _samples(arguments, names)

    def claimed(settings: LabelConfig | PredictConfig) -> AbstractContextManager[None]:
        return claimed_for_masks(
            out,
            checkpoints.weights_file(arguments.checkpoint),
            identity(settings) | exif_of(arguments),
            [] if arguments.labels is None else [arguments.labels],
            [*photograph_places(arguments.images), *paths_of(choose_refiners(settings))],
            about("label", arguments, names),
        )

    if isinstance(model, Segmenter):
        if emit:
            raise ValueError(
                f"--emit {','.join(emit)}: expected mask alone for a stage-2 checkpoint "
                f"({arguments.checkpoint})"
            )
        choose_refiners(choices)
        require_views(choices)
        for_ensemble(model, choices.ensemble)
        with claimed(choices):
            report = predict(model, samples, out, choices, given_classes=True, profile=profile)
            return show_masks(report, out, samples, names)
    features = uses_features(settings, choose_refiners(settings))
    views = "confidence" in emit and settings.confidence == "stability"
    source = cams_of(
        model, settings, settings.predict_above, with_features=features, with_views=views
    )
    require_way(settings, source)
    del model  # on a CPU the source has its own copy of most weights
    with claimed(settings):
        report = label(source, samples, out, settings, emit=emit, profile=profile)
        return show_masks(report, out, samples, names)
