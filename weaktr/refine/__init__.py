"""Steps between the scores of an image and its mask, such as the dense CRF.

A recipe lists them for labelling and for prediction, in their order::

    label:
      refiners: [crf]  # with label.crf; [{crf: voc_cam}] gives the CRF here instead

To add one: a file here with a `Refiner`, and its line in `REFINERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from weaktr.config import LabelConfig, PredictConfig
from weaktr.refine.crf import crf_refiner
from weaktr.refine.maps import Maps, Refiner, among, files_of, needs_features, notes_of, paths_of
from weaktr.refine.propagation import propagation_refiner
from weaktr.refine.proposals import proposals_refiner
from weaktr.refine.teacher import teacher_refiner

__all__ = [
    "READ_FILES",
    "REFINERS",
    "Maps",
    "Refiner",
    "among",
    "choose_refiners",
    "files_of",
    "needs_features",
    "notes_of",
    "paths_of",
    "refine",
]

#: Name in a recipe -> function that builds the refiner from its settings in the list (None = not
#: given) and from the settings of its stage. It returns None for no refinement.
REFINERS: dict[str, Callable[[Any, LabelConfig | PredictConfig], Refiner | None]] = {
    "crf": crf_refiner,
    "propagation": propagation_refiner,
    "proposals": proposals_refiner,
    "teacher": teacher_refiner,
}
#: Those that read files beside the photographs.
READ_FILES = ("proposals", "teacher")


def choose_refiners(stage_settings: LabelConfig | PredictConfig) -> list[Refiner]:
    """The refiners that a stage's settings ask for, in their order.

    Raises:
        ValueError: an unknown refiner, settings that it does not take, or one that starts from
            scores after one that leaves none.
    """
    chosen: list[Refiner] = []
    with_scores = True
    for entry in stage_settings.refiners:
        named: dict[str, Any] = {entry: None} if isinstance(entry, str) else entry
        if len(named) != 1 or not set(named) <= set(REFINERS):
            raise ValueError(
                f"refiners: expected each to be one of {', '.join(REFINERS)}, or "
                f"{{NAME: its settings}}; got {entry!r}"
            )
        ((name, settings),) = named.items()
        refiner = REFINERS[name](settings, stage_settings)
        if refiner is None:
            continue
        if getattr(refiner, "needs_scores", False) and not with_scores:
            raise ValueError(
                f"refiners: expected scores for {name}, which starts from them; the refiner before "
                "it leaves labels alone: let one of the two start otherwise, or change their order"
            )
        with_scores = getattr(refiner, "gives_scores", with_scores)
        chosen.append(refiner)
    return chosen


def refine(
    refiners: Sequence[Refiner],
    images: Sequence[Tensor],
    maps: Sequence[Maps],
    *,
    num_threads: int | None = None,
    confidence: bool = False,
) -> list[Maps]:
    """Apply the refiners one after the other; arguments and result as those of a `Refiner`."""
    refined = list(maps)
    scored = [own.agreement for own in maps]
    options = {"confidence": True} if confidence else {}  # else refiners need not know of it
    for refiner in refiners:
        refined = refiner(images, refined, num_threads=num_threads, **options)
        scored = [
            before if new.agreement is None else new.agreement
            for before, new in zip(scored, refined, strict=True)
        ]
        refined = [
            given._replace(
                labels=new.labels,
                scores=new.scores,
                confidence=new.confidence,
                agreement=agreement,
            )
            for new, given, agreement in zip(refined, maps, scored, strict=True)
        ]
    return refined
