"""In plain words: what the masks of a page are, and what would make them better.

Each rule looks at the numbers of a case and gives a sentence or two, or None where it does not
apply. Text between backticks is code. Sentences hold numbers, settings and the run's folder, no
names of classes or photographs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weaktr.config import Recipe
from weaktr.data.own import FEW_OF_CLASS
from weaktr.messages import counted, one_line
from weaktr.report.photographs import LEAST_AREA, LEAST_BACKGROUND, ClassRow, Photo
from weaktr.stages.run import Run

#: Fewer photographs are few.
FEW = 48
#: From this share of masks or labels on, something happens often enough for a setting.
OFTEN = 0.1


@dataclass(frozen=True)
class MaskSet:
    """The masks of one kind: their photographs and a row for each of their classes."""

    photos: Sequence[Photo]
    table: Sequence[ClassRow]

    @property
    def given(self) -> int:
        """Image-level labels of all photographs."""
        return sum(row.given for row in self.table)

    @property
    def found(self) -> int:
        """Those of them that the masks show."""
        return sum(row.found for row in self.table)

    @property
    def unknown(self) -> int:
        """Photographs whose labels are not known."""
        return sum(photo.given is None for photo in self.photos)

    def doubtful(self, doubt: str) -> int:
        """Masks with a `Photo.doubt`."""
        return sum(photo.doubt == doubt for photo in self.photos)


@dataclass(frozen=True)
class Case:
    """What the rules look at.

    Args:
        folder: of the run, or of a command.
        sets: "label" and "predict" -> masks of that kind; those that there are.
        recipe: of the run; None = of a command.
        trained: photographs that were trained on; 0 = not known.
        seen: how many photographs with predictions were trained on.
        has_scores: whether true masks have scored something.
    """

    folder: str
    sets: Mapping[str, MaskSet]
    recipe: Recipe | None = None
    trained: int = 0
    seen: int = 0
    has_scores: bool = False

    @property
    def is_of_patches(self) -> bool:
        """Whether stage 1 is a classifier of patches."""
        return self.recipe is not None and self.recipe.cam_model.kind == "patches"


Rule = Callable[[Case], str | None]


def case_of(folder: str, sets: Mapping[str, MaskSet], run: Run | None, *, scored: bool) -> Case:
    """The case of a run, or of a command's folder."""
    if run is None:
        return Case(one_line(folder), sets)
    trained = {os.path.realpath(sample.image) for sample in run.train_images}
    predicted = sets["predict"].photos if "predict" in sets else ()
    seen = sum(os.path.realpath(photo.sample.image) in trained for photo in predicted)
    return Case(one_line(folder), sets, run.recipe, len(run.train_images), seen, has_scores=scored)


def in_words(case: Case) -> dict[str, list[str]]:
    """What applies: "what" the masks are, how "good", what "helps"; nothing without masks."""
    if not any(masks.photos for masks in case.sets.values()):
        return {group: [] for group in GROUPS}
    return {
        group: [text for rule in rules if (text := rule(case)) is not None]
        for group, rules in GROUPS.items()
    }


# ---- what the masks are -------------------------------------------------------------------------


def pseudo_labels(case: Case) -> str | None:
    """What pseudo labels are, and why no class in them is wrong."""
    masks = case.sets.get("label")
    if masks is None or not masks.photos:
        return None
    count, known = len(masks.photos), len(masks.photos) - masks.unknown
    of = counted(case.trained or count, "photograph", "photographs")
    if case.trained:
        of = f"the {of} that the run learns from"
    some = f"{count:,} of " if count < case.trained else ""
    start = f"Pseudo labels are masks of {some}{of}."
    if not known:
        return f"{start} Which classes a photograph shows was not given: the model chose them."
    whose = "" if known == count else f" of {known:,} of them"
    return (
        f"{start} Which classes a photograph shows was given{whose}, and only these are possible "
        "in its mask: a precision of 100 % is by construction. What may be wrong is which pixels "
        "a class gets."
    )


def predictions(case: Case) -> str | None:
    """What predictions are, and whether their photographs were trained on."""
    masks = case.sets.get("predict")
    if masks is None or not masks.photos:
        return None
    count = len(masks.photos)
    start = (
        f"Predictions are masks of {counted(count, 'photograph', 'photographs')} by the segmenter, "
        "which is told no labels."
    )
    if case.recipe is None:
        return start
    if case.seen:
        return (
            f"{start} {case.seen:,} of the photographs were trained on, so that this says little "
            "of new ones."
        )
    return f"{start} These were kept apart from training, as new photographs are."


def confidence(case: Case) -> str | None:
    """What confidence is not."""
    photos = [photo for masks in case.sets.values() for photo in masks.photos]
    if all(photo.confidence is None for photo in photos):
        return None
    return (
        "Confidence is how sure the model was of the classes that it drew, not how likely it is "
        "right: a mask may be wrong all over at 95 %."
    )


def found(case: Case) -> str | None:
    """How many labels were found."""
    parts = []
    for maker, name in (("label", "pseudo labels"), ("predict", "predictions")):
        masks = case.sets.get(maker)
        if masks is not None and masks.given:
            share = f"{masks.found:,} of {masks.given:,} ({masks.found / masks.given:.0%})"
            parts.append(f"{name} show {share.replace('%', ' %')}")
    if not parts:
        return None
    return (
        f"Of the labels that the photographs are known to have, {' and '.join(parts)}, on at least "
        f"{100 * LEAST_AREA:g} % of the pixels. Whether the right pixels, this does not say."
    )


def no_truth(case: Case) -> str | None:
    """How to learn how good the masks are."""
    if case.has_scores:
        return None
    start = "There are no true masks, so how good the outlines are is not known."
    if case.recipe is None:
        return f"{start} With some, `weaktr eval {_quoted(case.folder)} TRUTH` scores these."
    if case.recipe.data.source != "folder":
        return start
    root = _quoted(f"{one_line(case.recipe.data.root)}/masks/")
    return (
        f"{start} To measure it, draw a few, put them into `{root}` (docs/own_data.md says how) "
        "and start the run again: the scores then stand here. Nothing learns from them; with "
        "`weaktr-train RECIPE --val-masks N` the threshold is chosen by N of them."
    )


def to_expect(case: Case) -> str | None:
    """What was measured elsewhere, with the same kind of model."""
    if case.has_scores or not case.is_of_patches or "label" not in case.sets:
        return None
    return (
        "For comparison: on PASCAL VOC 2012 (20 classes) the recipe `own_dinov2_s` came to pseudo "
        "labels of 33 to 37 % mIoU with 50 photographs, and of 55 % with 311; with 128 photographs "
        "of 80 classes of COCO, of 17 to 18 %."
    )


# ---- what would help ----------------------------------------------------------------------------


def few_photographs(case: Case) -> str | None:
    """Whether there is too little to learn from."""
    if not 0 < case.trained < FEW:
        return None
    photographs = counted(case.trained, "photograph is", "photographs are")
    return f"{photographs} few to learn from; some hundreds are better."


def few_of_a_class(case: Case) -> str | None:
    """Whether many classes have few photographs."""
    masks = case.sets.get("label")
    if masks is None or not case.trained:
        return None
    counts = [row.given for row in masks.table if row.given]
    few = sum(count < FEW_OF_CLASS for count in counts)
    if not few:
        return None
    only = sum(count == 1 for count in counts)
    ones = f" ({only:,} of them a single one)" if only else ""
    return (
        f"{few:,} of {counted(len(counts), 'class has', 'classes have')} fewer than {FEW_OF_CLASS} "
        f"training photographs{ones}: expect poor masks of them. More photographs of them, or "
        "fewer classes, help most."
    )


def without_background(case: Case) -> str | None:
    """What to do about masks that cover their photographs."""
    parts = []
    for maker, name in (("label", "pseudo labels"), ("predict", "predictions")):
        masks = case.sets.get(maker)
        if masks is not None and (full := masks.doubtful("full")):
            parts.append(f"{full:,} of {len(masks.photos):,} {name}")
    if not parts:
        return None
    text = (
        f"Look at the masks with hardly any background, below {100 * LEAST_BACKGROUND:g} % "
        f"({', '.join(parts)}): under Photographs, Show. Close-ups may be right."
    )
    labels = case.sets.get("label")
    if case.recipe is None or labels is None:
        return text
    if labels.doubtful("full") < OFTEN * len(labels.photos):
        return text
    more = f" Where many are wrong, set `label.threshold` (now {case.recipe.label.threshold}) "
    more += "higher: less of each object"
    if case.is_of_patches:
        now = case.recipe.cam_model.patches.least_background
        more += f"; or `cam_model.patches.least_background` (now {now:g}) higher"
    return f"{text}{more}."


def missing_labels(case: Case) -> str | None:
    """What to do about labels that pseudo labels do not show."""
    masks = case.sets.get("label")
    if case.recipe is None or masks is None or not masks.given:
        return None
    missing = masks.given - masks.found
    if missing < OFTEN * masks.given:
        return None
    text = f"{missing:,} of {masks.given:,} labels are missing in the pseudo labels."
    if not case.is_of_patches:
        return f"{text} More photographs of these classes help."
    now = case.recipe.cam_model.patches.least_share
    return (
        f"{text} More photographs of these classes help most. A larger "
        f"`cam_model.patches.least_share` (now {now:g}) makes masks show more of them, but small "
        "objects too large; a smaller one hides more."
    )


def blind_segmenter(case: Case) -> str | None:
    """What to do where predictions show fewer labels than pseudo labels."""
    labels, predicted = case.sets.get("label"), case.sets.get("predict")
    if case.recipe is None or labels is None or predicted is None:
        return None
    if not labels.given or not predicted.given:
        return None
    shares = [masks.found / masks.given for masks in (labels, predicted)]
    if shares[1] > shares[0] - OFTEN:
        return None
    model = _quoted(f"{case.folder}/train_cam/model.safetensors")
    return (
        "The segmenter, which is told no labels, misses more than the pseudo labels do. Where you "
        f"know what new photographs show, say it: `weaktr label {model} PHOTOS` uses their labels."
    )


def nothing_found(case: Case) -> str | None:
    """Masks of background alone where no labels are known."""
    empty = sum(masks.doubtful("empty") for masks in case.sets.values())
    if not empty:
        return None
    masks = counted(empty, "mask shows", "masks show")
    return f"{masks} nothing: either the photograph has none of the classes, or it was not found."


def correction(case: Case) -> str | None:
    """How masks are corrected."""
    if case.recipe is None or "label" not in case.sets:
        return None
    masks = _quoted(f"{case.folder}/label/masks/")
    text = f"Pseudo labels may be corrected by hand, as the files in `{masks}`"
    if "train_seg" in case.recipe.stages:
        text += "; the run started again trains the segmenter on them as you left them"
    run = _quoted(case.folder)
    return f"{text}. `weaktr export-masks {run} --to FORMAT` gives masks to an annotation tool."


GROUPS: Mapping[str, Sequence[Rule]] = {
    "what": (pseudo_labels, predictions, confidence),
    "good": (found, no_truth, to_expect),
    "helps": (
        few_of_a_class, few_photographs, missing_labels, without_background, nothing_found,
        blind_segmenter, correction,
    ),
}  # fmt: skip


def _quoted(path: str) -> str:
    """A path for a command line, without a backtick, which would end the code."""
    return shlex.quote(path).replace("`", "'")
