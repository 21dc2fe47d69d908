"""Stage 1 for few photographs: one pass of a frozen backbone, then a classifier of patches.

``train_cam`` with ``cam_model.kind: patches``. Once the features are there, which are kept, it
takes seconds, so that a run that was stopped starts it again. In memory are only as many patches as
`TrainPatchesConfig.most_patches`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from weaktr import processes
from weaktr.inference.features import FeatureStore, View
from weaktr.inference.patch_cams import encoder_of, stacked
from weaktr.messages import few
from weaktr.models import PatchModel
from weaktr.models.pretrained import load_backbone
from weaktr.progress import Meter
from weaktr.stages.carried import save_model
from weaktr.stages.run import Run
from weaktr.training.loss_log import METRICS
from weaktr.training.metrics import MetricsLog
from weaktr.training.patches import fit_patches, gather
from weaktr.training.state import set_seeds

log = logging.getLogger("weaktr")


def train_patches(run: Run, folder: Path) -> int:
    """Fit a `PatchModel` to the training images.

    Args:
        run: `Recipe.cam_model` and `TrainCamConfig.patches` are used.
        folder: gets ``metrics.jsonl`` and ``model.safetensors``.

    Of several processes each passes its part of the photographs through the backbone; the first
    does the rest.

    Returns:
        How many photographs could not be read.

    Raises:
        ValueError: fewer than two can.
    """
    recipe, settings = run.recipe, run.recipe.train_cam.patches
    classes = run.train_images.classes
    set_seeds(recipe.seed)  # for a backbone without weights
    model = PatchModel(recipe.cam_model, len(classes))
    load_backbone(model.vit, recipe.cam_model)
    model = model.to(run.device).eval()
    store = features_of_run(model, run)
    samples = run.train_images.samples
    if processes.count() > 1 and run.cache.folder is not None:
        for _ in store.of(processes.part(samples)):  # the first reads it from the files
            pass
        processes.wait_for_all()
    if not processes.is_first():
        return 0

    def photographs() -> Iterator[tuple[Tensor, Tensor]]:
        for sample, found in store.of(samples):
            shown = torch.zeros(len(classes))
            shown[list(sample.labels or ())] = 1
            yield stacked(found), shown

    patches = gather(model, photographs(), len(samples), settings, recipe.seed)
    read = (sample for sample in samples if sample.name not in store.left_out)
    if lost := run.train_images.lost_classes(read):
        log.warning(
            "no photograph that could be read shows %s, so it will not be found in any", few(lost)
        )
    metrics = MetricsLog(folder / METRICS)
    metrics.cut(0)
    with Meter("train_cam rounds", settings.rounds, unit="rounds") as meter:

        def told(number: int, facts: dict[str, float]) -> None:
            metrics.write([{"round": number, **facts}])
            meter.advance(1, f"{100 * facts['changed']:.1f} % of the patches changed")

        fit_patches(model, patches, settings, told)
    metrics.close()
    save_model(model, run, folder)
    return len(store.left_out)


def features_of_run(model: PatchModel, run: Run) -> FeatureStore:
    """The features of a run's photographs, as its model sees them."""
    view = View(model.config.patches.short_side)
    return FeatureStore(encoder_of(model), run.cache, view, run.contents)
