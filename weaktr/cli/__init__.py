"""The commands ``weaktr`` and ``weaktr-train``.

Every command says what it needs in its ``--help``; a mistake in the input ends in one line that
says what to do, not in a traceback (``--debug`` shows it).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from weaktr.cli import checkpoints as cli_checkpoints
from weaktr.cli import eval as cli_eval
from weaktr.cli import tools as cli_tools
from weaktr.cli.memory import keep_freed_memory
from weaktr.config import LabelConfig, PredictConfig, Recipe
from weaktr.data.masks import MaskFolder
from weaktr.ops.registry import BackendUnavailable
from weaktr.progress import console, log, set_up_logging
from weaktr.recipes import (
    apply_setting,
    as_tree,
    dump_recipe,
    load_recipe,
    make,
    recipe_names,
)

Arguments = argparse.Namespace
#: Exit codes beside 0.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

_TRAIN_HELP = f"""\
Train from image-level labels to masks: {" -> ".join(Recipe.stages)}.

A finished stage is not run again unless its inputs have changed; a run that was
interrupted or killed goes on from its last checkpoint when started again.

recipes: {", ".join(recipe_names())} (or the path of a YAML file)

examples:
  weaktr-train demo
  weaktr-train voc12_deit_s --data-root /data --out runs/voc
  weaktr-train voc12_deit_s --set train_cam.batch_size=16 --set train_cam.accumulate=4
  weaktr-train demo --from label --set label.threshold=0.3
  weaktr-train my.yaml --only evaluate --force
"""
_LABEL_HELP = """\
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
_PREDICT_HELP = """\
Masks for plain images: sliding windows over scales and flips, then the CRF.

Writes OUT/masks, and OUT/before_refinement with the masks before the CRF; `weaktr eval OUT TRUTH`
scores both. Started again, it goes on with the images that are left.

For a test set without masks, --archive writes what the PASCAL VOC server takes
(results/VOC2012/Segmentation/comp6_test_cls/NAME.png).

examples:
  weaktr predict runs/voc/train_seg/model.safetensors photos/ --out masks/
  weaktr predict model.safetensors photos/ --set ratios=[1.0] --set flip=false --set crf=none
  weaktr predict model.safetensors VOC2012/JPEGImages --names ImageSets/Segmentation/val.txt
  weaktr predict model.safetensors VOC2012/JPEGImages --names ImageSets/Segmentation/test.txt \\
      --archive results.tgz --comp comp6
"""


def main(argv: Sequence[str] | None = None) -> int:
    """``weaktr COMMAND ...``; returns the exit code."""
    parser = argparse.ArgumentParser(
        "weaktr",
        description="Weakly-supervised semantic segmentation with plain vision transformers.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, act, text) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text.strip().splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        _add_common(command)
        command.set_defaults(act=act)
    return _run(parser.parse_args(argv))


def train_main(argv: Sequence[str] | None = None) -> int:
    """``weaktr-train RECIPE ...``; returns the exit code."""
    parser = argparse.ArgumentParser(
        "weaktr-train",
        description=_TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_train(parser)
    _add_common(parser)
    parser.set_defaults(act=_train)
    return _run(parser.parse_args(argv))


def _run(arguments: Arguments) -> int:
    set_up_logging(logging.DEBUG if arguments.debug else logging.INFO)
    keep_freed_memory()
    try:
        code: int = arguments.act(arguments)
    except (ValueError, FileNotFoundError, BackendUnavailable) as error:
        if arguments.debug:
            raise
        console.print(Text(str(error), style="bold red"))
        return WRONG_INPUT
    except KeyboardInterrupt:
        log.warning("interrupted; start the same command again to go on")
        return INTERRUPTED
    return code


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")


def _add_set(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one of the {what}; may be repeated",
    )


# ---------------------------------------------------------------- train


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name or YAML file")
    _add_set(parser, "recipe's settings, such as train_cam.epochs=5")
    parser.add_argument("--data-root", metavar="DIR", help="short for --set data.root=DIR")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder (default runs/RECIPE)")
    parser.add_argument(
        "--from", dest="start", choices=Recipe.stages, help="take earlier stages as is"
    )
    parser.add_argument("--only", choices=Recipe.stages, help="run this stage alone")
    parser.add_argument("--force", action="store_true", help="run finished stages again")
    parser.add_argument("--print", action="store_true", help="print the whole recipe and stop")


def _train(arguments: Arguments) -> int:
    settings = list(arguments.set)
    if arguments.data_root is not None:
        settings.append(f"data.root={json.dumps(arguments.data_root)}")
    recipe = load_recipe(arguments.recipe, settings)
    if arguments.print:
        sys.stdout.write(dump_recipe(recipe))
        return 0
    from weaktr.stages.pipeline import run_recipe

    run = arguments.out or Path("runs") / recipe.name
    run_recipe(recipe, run, start=arguments.start, only=arguments.only, force=arguments.force)
    log.info("results: %s, numbers: %s", run, run / "metrics.json")
    return 0


# ---------------------------------------------------------------- label, predict


def _add_label(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--device", default="auto")
    _add_set(parser, f"settings of labelling ({_listed(LabelConfig())})")


def _label(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.models import CamModel
    from weaktr.stages.label import label

    if arguments.checkpoint.is_dir():
        return _label_stored(arguments)
    settings = _settings(LabelConfig(), arguments.set)
    model, info = _load(arguments.checkpoint, arguments.device)
    if not isinstance(model, CamModel):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-1 checkpoint, got stage 2")
    names = _class_names(info, arguments.checkpoint)
    manifest = data.folder(arguments.images, arguments.labels, classes=names)
    _begin(arguments.out, arguments.checkpoint, as_tree(settings))
    label(model, manifest.samples, arguments.out, settings, dump_cams=arguments.dump_cams)
    log.info("masks: %s", arguments.out / "masks")
    return 0


def _label_stored(arguments: Arguments) -> int:
    """`_label` where CAMs were made before."""
    from weaktr import data
    from weaktr.data.stored_maps import cam_files
    from weaktr.stages.label import AFTER_CAMS, label_stored

    cams, out = arguments.checkpoint, arguments.out
    settings = _settings(LabelConfig(), arguments.set)
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
    _begin(out, cams, {key: used[key] for key in AFTER_CAMS})
    label_stored(files, samples, out, settings)
    log.info("masks: %s", out / "masks")
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--device", default="auto")
    _add_set(parser, f"settings of prediction ({_listed(PredictConfig())})")


def _predict(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.evaluation.voc_server import require_suffix, write_voc_archive
    from weaktr.models import Segmenter
    from weaktr.stages.predict import predict

    if arguments.archive is not None:
        require_suffix(arguments.archive)
    changes = [f"ensemble={arguments.ensemble}"] if arguments.ensemble else []
    settings = _settings(PredictConfig(), arguments.set + changes)
    model, _ = _load(arguments.checkpoint, arguments.device)
    if not isinstance(model, Segmenter):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-2 checkpoint, got stage 1")
    samples = data.unlabelled(arguments.images).samples
    if arguments.names is not None:
        samples = data.only(samples, data.read_names(arguments.names))
    out = arguments.out
    _begin(out, arguments.checkpoint, as_tree(settings))
    left_out = predict(model, samples, out, settings, dump_scores=arguments.dump_scores)
    log.info("masks: %s", out / "masks")
    if arguments.archive is not None:
        names = [sample.name for sample in samples]
        write_voc_archive(arguments.archive, MaskFolder(out), names, arguments.comp)
        log.info("for the VOC server: %s", arguments.archive)
    return FAILED if left_out else 0


def _settings(default: Any, changes: Sequence[str]) -> Any:
    """`default` with ``key=value`` changes."""
    tree = as_tree(default)
    for change in changes:
        apply_setting(tree, change)
    return make(type(default), tree, origin="--set")


def _listed(settings: Any) -> str:
    return ", ".join(as_tree(settings))


def _load(path: Path, device: str) -> tuple[Any, dict[str, Any]]:
    from weaktr.models import checkpoints
    from weaktr.models.precision import choose_device

    return checkpoints.load(path, choose_device(device))


def _class_names(info: dict[str, Any], path: Path) -> tuple[str, ...]:
    if "classes" not in info:
        raise ValueError(f"{path}: this checkpoint does not name its classes")
    return tuple(info["classes"]["names"])


def _begin(folder: Path, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix masks of different checkpoints or settings in one folder."""
    from weaktr.outputs import begin, fingerprint

    made_from = fingerprint(str(checkpoint.resolve()), checkpoint.stat().st_size, settings)
    begin(folder, made_from, checkpoint=str(checkpoint), settings=settings)


_Command = tuple[Callable[[argparse.ArgumentParser], None], Callable[[Arguments], int], str]
_COMMANDS: dict[str, _Command] = {
    "train": (_add_train, _train, _TRAIN_HELP),
    "label": (_add_label, _label, _LABEL_HELP),
    "predict": (_add_predict, _predict, _PREDICT_HELP),
    "eval": (cli_eval.add_eval, cli_eval.eval_command, cli_eval.EVAL_HELP),
    "import": (
        cli_checkpoints.add_import,
        cli_checkpoints.import_command,
        cli_checkpoints.IMPORT_HELP,
    ),
    "export": (
        cli_checkpoints.add_export,
        cli_checkpoints.export_command,
        cli_checkpoints.EXPORT_HELP,
    ),
    "data": (cli_tools.add_data, cli_tools.data_command, cli_tools.DATA_HELP),
    "env": (cli_tools.add_env, cli_tools.env_command, cli_tools.ENV_HELP),
    "show": (cli_tools.add_show, cli_tools.show_command, cli_tools.SHOW_HELP),
}
