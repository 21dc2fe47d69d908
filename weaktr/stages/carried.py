"""The settings that a checkpoint carries: how its run makes masks with it.

A training stores those of the stage after it in the description of its model. That stage may have
run again since, with others, so where the checkpoint lies in its run, and the masks there come from
it, their settings count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from weaktr.config import LabelConfig, PredictConfig
from weaktr.contents import CONTENTS, Contents
from weaktr.data.manifest import Exif, require_exif
from weaktr.inference.stored_cams import CAMS, exif_of_cams
from weaktr.inference.threshold import read_choice
from weaktr.models import Segmenter, Stage1Model, checkpoints
from weaktr.outputs import INPUTS, RECIPE, read_inputs
from weaktr.recipes import as_tree, changes, identity, load_recipe, make, with_settings
from weaktr.refine import READ_FILES
from weaktr.stages.run import MODEL, Run

S = TypeVar("S", LabelConfig, PredictConfig)
#: Kind of settings -> the stage that has them, and the training before it.
STAGES: dict[type, tuple[str, str]] = {
    LabelConfig: ("label", "train_cam"),
    PredictConfig: ("predict", "train_seg"),
}
#: The key in a checkpoint's description.
MASKS = "masks"


@dataclass(frozen=True)
class Carried(Generic[S]):
    """Settings for masks of a checkpoint.

    Args:
        settings: of the stage.
        exif: how photographs are read, see `Sample`.
        origin: where they come from, in words.
        changed: what the user has changed of them, ``key=value``.
    """

    settings: S
    exif: Exif
    origin: str
    changed: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Where they come from, and all that differs from the published ones."""
        words = [*changes(self.settings), *([] if self.exif == "ignore" else [f"exif={self.exif}"])]
        but = f", changed by --set {' '.join(self.changed)}" if self.changed else ""
        return f"settings {self.origin}{but}: {' '.join(words) or 'those published'}"


def save_model(model: Stage1Model | Segmenter, run: Run, folder: Path) -> None:
    """Write `MODEL` into the folder of a training, with its classes and how to make masks."""
    classes, recipe = run.train_images.classes, run.recipe
    exif = "apply" if any(sample.exif == "apply" for sample in run.train_images) else "ignore"
    stage, _ = STAGES[PredictConfig if isinstance(model, Segmenter) else LabelConfig]
    checkpoints.save(
        model,
        folder / MODEL,
        classes={"names": classes.names, "ids": classes.ids},
        **{MASKS: {stage: as_tree(getattr(recipe, stage)), "exif": exif}},
    )


def of_other_stage(kind: type[LabelConfig | PredictConfig], checkpoint: Path | None) -> str:
    """Which checkpoint makes masks by settings of a kind, where one of the other stage was given.

    Args:
        kind: of the settings.
        checkpoint: that was given; None = it is in no file.

    Returns:
        To be put behind a message; empty where the checkpoint is not in a run that has one.
    """
    if checkpoint is None or checkpoint.name != MODEL:
        return ""
    trainings = {training for _, training in STAGES.values()}
    training = STAGES[kind][1]
    file = checkpoint.parent.parent / training / MODEL
    if checkpoint.parent.name not in trainings - {training} or not file.is_file():
        return ""
    return f"; that of its run is {file}"


def carried(
    kind: type[S], checkpoint: Path, description: Mapping[str, Any], settings: Sequence[str] = ()
) -> Carried[S]:
    """The settings for masks of a checkpoint.

    Args:
        kind: of the settings.
        checkpoint: the ``.safetensors`` file.
        description: the one stored in it.
        settings: changes, ``key=value`` as ``--set`` takes them.

    Raises:
        ValueError: the description holds no settings of this kind; a change is wrong; or what is
            left cannot be used apart from the run: files that the refiners are to read, a threshold
            that true masks choose.
    """
    found = _of_run(kind, checkpoint, description)
    if found is None:
        found = _of_description(kind, checkpoint, description)
        own = with_settings(found.settings, settings)
        _require_usable(own, found.settings, checkpoint)
    return replace(found, settings=with_settings(found.settings, settings), changed=tuple(settings))


def carried_of_cams(
    folder: Path, fields: Collection[str], settings: Sequence[str] = ()
) -> Carried[LabelConfig]:
    """The settings for masks of CAMs in files: those of the command that wrote them.

    Args:
        folder: of the CAMs.
        fields: of `LabelConfig` that count for CAMs that are there.
        settings: see `carried`.

    Raises:
        ValueError: ``inputs.json`` beside them is damaged, or a change is wrong.
    """
    home = folder.parent
    stored = read_inputs(home) if folder.name == CAMS else None
    about = None if stored is None else stored.get("about")
    if stored is None or not isinstance(about, dict) or not isinstance(stored["settings"], dict):
        found = Carried(LabelConfig(), exif_of_cams(folder) or "ignore", "as published")
    else:
        tree = {key: value for key, value in stored["settings"].items() if key in fields}
        own = make(LabelConfig, tree, origin=str(home / INPUTS))
        if not isinstance(own.threshold, float) and (choice := read_choice(home)) is not None:
            own = replace(own, threshold=choice.threshold)
        exif = require_exif(str(about.get("exif", "ignore")))
        found = Carried(for_photographs(own), exif, f"of {home}")
    return replace(found, settings=with_settings(found.settings, settings), changed=tuple(settings))


def _of_run(kind: type[S], checkpoint: Path, description: Mapping[str, Any]) -> Carried[S] | None:
    """Of the stage after the training, where the checkpoint lies in its run."""
    stage, training = STAGES[kind]
    folder = checkpoint.parent.parent
    masks, recipe_file = folder / stage, folder / RECIPE
    in_place = checkpoint.name == MODEL and checkpoint.parent.name == training
    stored = read_inputs(masks) if in_place and recipe_file.is_file() else None
    if stored is None:
        return None
    recipe = load_recipe(recipe_file)
    settings = getattr(recipe, stage)
    results = stored.get("results")
    model = results.get(training) if isinstance(results, dict) else None
    digest = Contents(folder / CONTENTS).digest(checkpoint)
    if not (
        stored.get("settings") == {stage: identity(settings)}
        and isinstance(model, list)
        and digest in model
    ):
        return None  # masks of other settings, or of another model
    assert isinstance(settings, kind)
    chosen: dict[str, Any] = {}
    if isinstance(settings, LabelConfig) and not isinstance(settings.threshold, float):
        choice = read_choice(masks)
        if choice is None:
            return None
        chosen = {"threshold": choice.threshold, "val_masks": None}
    own = for_photographs(replace(settings, **chosen))
    stored_with_it = description.get(MASKS)
    exif = stored_with_it.get("exif") if isinstance(stored_with_it, dict) else None
    if exif is None:  # an older version trained it
        exif = recipe.data.options.get("exif", "ignore")
    return Carried(own, require_exif(str(exif)), f"of {masks}")


def _of_description(kind: type[S], checkpoint: Path, description: Mapping[str, Any]) -> Carried[S]:
    """Those that the training stored, else the defaults."""
    stage, _ = STAGES[kind]
    stored = description.get(MASKS)
    if stored is None:
        return Carried(kind(), "ignore", "as published (the checkpoint carries none)")
    tree = stored.get(stage) if isinstance(stored, dict) else None
    exif = stored.get("exif") if isinstance(stored, dict) else None
    if not isinstance(tree, dict) or exif not in ("ignore", "apply"):
        raise ValueError(f"{checkpoint}: {MASKS}: expected settings of {stage}, got {stored!r:.60}")
    settings = make(kind, tree, origin=f"{checkpoint}: {MASKS}.{stage}")
    return Carried(for_photographs(settings), exif, "carried by the checkpoint")


def for_photographs(settings: S) -> S:
    """Settings without what only a run needs: soft labels, from which its stage 2 learns."""
    of_a_run: dict[str, Any] = {"soft": False} if isinstance(settings, LabelConfig) else {}
    return replace(settings, **of_a_run)


def _require_usable(
    settings: LabelConfig | PredictConfig, stored: LabelConfig | PredictConfig, checkpoint: Path
) -> None:
    """Raise `ValueError` for what a checkpoint says and its run alone can do."""
    apart = f"{checkpoint}: it is not in its run, which"
    if (
        isinstance(settings, LabelConfig)
        and isinstance(stored, LabelConfig)
        and settings.threshold == stored.threshold == "search_on_masks"
    ):
        raise ValueError(
            f"{apart} chose the threshold with true masks: give the number in "
            "RUN/label/threshold.json, --set threshold=0.4 --set val_masks=null, or let it be "
            "chosen without masks, --set threshold=auto --set val_masks=null"
        )
    named = {name for entry in settings.refiners if isinstance(entry, dict) for name in entry}
    if settings.refiners == stored.refiners and (used := named & set(READ_FILES)):
        raise ValueError(
            f"{apart} refined with files of its own ({', '.join(used)}): name yours with --set "
            "refiners=..., or do without: --set refiners=[crf]"
        )
