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
from weaktr.refine.maps import Maps, Refiner, needs_features

__all__ = ["REFINERS", "Maps", "Refiner", "choose_refiners", "needs_features", "refine"]

#: Name in a recipe -> function that builds the refiner from its settings in the list (None = not
#: given) and from the settings of its stage. It returns None for no refinement.
REFINERS: dict[str, Callable[[Any, LabelConfig | PredictConfig], Refiner | None]] = {
    "crf": crf_refiner,
}


def choose_refiners(stage_settings: LabelConfig | PredictConfig) -> list[Refiner]:
    """The refiners that a stage's settings ask for, in their order.

    Raises:
        ValueError: an unknown refiner, or settings that it does not take.
    """
    chosen = []
    for entry in stage_settings.refiners:
        named: dict[str, Any] = {entry: None} if isinstance(entry, str) else entry
        if len(named) != 1 or not set(named) <= set(REFINERS):
            raise ValueError(
                f"refiners: expected each to be one of {', '.join(REFINERS)}, or "
                f"{{NAME: its settings}}; got {entry!r}"
            )
        ((name, settings),) = named.items()
        refiner = REFINERS[name](settings, stage_settings)
        if refiner is not None:
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
    options = {"confidence": True} if confidence else {}  # else refiners need not know of it
    for refiner in refiners:
        refined = refiner(images, refined, num_threads=num_threads, **options)
        refined = [
            new._replace(features=given.features, name=given.name)
            for new, given in zip(refined, maps, strict=True)
        ]
    return refined
