"""CAMs -> threshold -> refinement -> pseudo-label masks and their index.

The CAMs come from a stage-1 model, or from files that were written before.

Source: reference.md 28 and 32 (the published generation of labels).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from weaktr import processes
from weaktr.config import LabelConfig
from weaktr.contents import Contents, digest_of
from weaktr.data import Manifest, Sample
from weaktr.data.masks import MaskFolder
from weaktr.inference.cams import CamInputs, CamsOfModel, CamSource
from weaktr.inference.labels import label_maps, uses_features
from weaktr.inference.patch_cams import CamsOfPatches
from weaktr.inference.results import LabelMaps
from weaktr.inference.soft_labels import Softening
from weaktr.inference.threshold import CHOICE
from weaktr.inference.timeline import Timeline
from weaktr.labelling.masks import MaskMaker, MaskReport, make_masks, problems_of_all
from weaktr.labelling.store import MaskStore, soft_file
from weaktr.models import PatchModel
from weaktr.refine import Refiner, among, choose_refiners, files_of, needs_features
from weaktr.stages.run import Run, Stage, masks_digest
from weaktr.stages.threshold import masks_to_search_on, require_way, threshold_of
from weaktr.stages.train_cam import TRAIN_CAM
from weaktr.stages.train_patches import features_of_run

#: The fields of `LabelConfig` that take effect after the CAMs, not in computing them.
AFTER_CAMS = (
    "threshold", "crf", "gt_prob", "unlabelled", "refiners", "queue_mb", "confidence",
    "soft", "soft_temperature", "soft_stride",
)  # fmt: skip


def label(
    source: CamSource,
    samples: Sequence[Sample],
    folder: Path,
    settings: LabelConfig,
    *,
    emit: Collection[str] = (),
    profile: Path | None = None,
    contents: Contents | None = None,
    masked: Manifest | None = None,
    group: str = "",
) -> MaskReport:
    """Write a pseudo label for every image that shows a class; continues where it stopped.

    Args:
        source: of the CAMs.
        samples: the images; their true masks are not read.
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``; with
            `LabelConfig.soft` also ``soft/NAME.npz``, see `npz_of_soft_labels`; where the threshold
            is chosen, ``threshold.json`` and a chart of it.
        settings: see `LabelConfig`; for stored CAMs only those of `AFTER_CAMS` count.
        emit: "confidence": also ``confidence/NAME.png``; "cam": also ``cams/NAME.npz`` (large). The
            mask of an image that has no such file is made again.
        profile: see `make_masks`.
        contents: see `MaskStore`.
        masked: images with true masks, on which "search_on_masks" chooses the threshold.
        group: see `MaskReport.log`.

    Returns:
        What was labelled and what was left out, which is also logged.

    Raises:
        ValueError: a refiner works on patch features, and the source gives none; or see
            `weaktr.stages.threshold.threshold_of`.
        PipelineError: see `weaktr.inference.pipeline.run_pipeline`.
    """
    refiners = among(choose_refiners(settings), [sample.name for sample in samples])
    require_features(refiners, source)
    require_way(settings, source, masked)
    keep_unlabelled = settings.unlabelled == "background"

    def files(sample: Sample) -> tuple[Path, ...]:
        chosen = [folder / CHOICE] if is_chosen else []
        return (*source.files(sample), *files_of(refiners, sample.name), *chosen)

    store = MaskStore(
        folder,
        files,
        refined=bool(refiners),
        keep_unlabelled=keep_unlabelled,
        emit=emitted(settings, emit),
        contents=contents,
        num_labels=source.num_labels,
    )
    shown = [s for s in samples if keep_unlabelled or source.shows_a_class(s)]
    nothing = [s for s in samples if not (keep_unlabelled or source.shows_a_class(s))]
    left_out = problems_of_all(list(store.drop(processes.part(nothing))))
    candidates = [s for s in shown if source.shows_a_class(s)]
    is_chosen = bool(candidates) and not isinstance(settings.threshold, float)
    threshold = 1.0
    if candidates:
        threshold = processes.of_first(
            lambda: threshold_of(source, candidates, folder, settings, masked)
        )

    maker = label_maker(source, settings, threshold, refiners, emit)
    report = make_masks(maker, shown, store, profile=profile)
    report.left_out[:0] = left_out
    report.count_older(store.masks, samples)
    report.unlabelled[:0] = [sample.name for sample in nothing]
    report.log("pseudo labels", settings.max_side, group)
    return report


def label_maker(
    source: CamSource,
    settings: LabelConfig,
    threshold: float,
    refiners: Sequence[Refiner],
    emit: Collection[str] = (),
) -> MaskMaker[CamInputs]:
    """What makes the pseudo labels of `label`; arguments as there, the threshold a number."""
    softening = Softening(settings.soft_temperature, settings.soft_stride)

    def compute(batch: Sequence[CamInputs], timeline: Timeline) -> list[LabelMaps]:
        return label_maps(
            source,
            batch,
            threshold,
            refiners,
            emit=emit,
            confidence=settings.confidence,
            softening=softening if settings.soft else None,
            timeline=timeline,
        )

    device, queue_mb = source.device, settings.queue_mb
    return MaskMaker("pseudo labels", source.read, source.fits, compute, device, queue_mb, refiners)


def emitted(settings: LabelConfig, emit: Collection[str]) -> list[str]:
    """What is written beside the masks: names of `weaktr.labelling.store.EXTRAS`."""
    return [*emit, "soft"] if settings.soft else [*emit]


def require_features(refiners: Sequence[Refiner], source: CamSource) -> None:
    """Raise `ValueError` where refiners work on patch features that a source does not give."""
    if needs_features(refiners) and not source.with_features:
        raise ValueError(
            "refiners: expected CAMs with patch features for propagation, got CAMs without them "
            "(those in files have none): label with the model, from Python with "
            "CamsOfModel(..., with_features=True), or leave propagation out"
        )


def label_run(run: Run, folder: Path) -> int:
    """Label the training images of a run; returns how many were left out."""
    samples, settings = run.train_images.samples, run.recipe.label
    features = uses_features(settings, choose_refiners(settings))
    model = run.cam_model()
    source: CamSource
    if isinstance(model, PatchModel):
        store = features_of_run(model, run)
        source = CamsOfPatches(model, settings, with_features=features, cache=store)
        done = MaskFolder(folder).entries
        shown = [sample for sample in samples if source.shows_a_class(sample)]
        source.fill_cache([s for s in processes.part(shown) if s.name not in done])
    else:
        source = CamsOfModel(model, settings, with_features=features)
    masked = masks_to_search_on(run)
    report = label(
        source, samples, folder, settings, contents=run.contents, masked=masked, group="label."
    )
    return len(report.left_out)


def labels_digest(run: Run, folder: Path) -> str:
    """`Stage.result` of labelling: of the masks, and of the soft labels where there are to be."""
    masks = masks_digest(run, folder)
    if not run.recipe.label.soft:
        return masks
    names = sorted(MaskFolder(folder).entries)
    files = [soft_file(folder, name) for name in names]
    soft = [run.contents.digest(file) if file.is_file() else "" for file in files]
    return digest_of([(masks, *soft)])


def settings_of_drawing(run: Run) -> dict[str, Any]:
    """`Stage.also`: what draws the true masks by which the threshold is chosen."""
    return {} if run.recipe.label.val_masks is None else {"seed": run.recipe.seed}


LABEL = Stage(
    "label",
    settings=("label",),
    also=settings_of_drawing,
    images=lambda run: [run.train_images],
    work=label_run,
    result=labels_digest,
    chosen_on=lambda run: run.score if run.recipe.label.threshold == "search_on_masks" else None,
    by_image=True,
    refiners=lambda run: choose_refiners(run.recipe.label),
    after=(TRAIN_CAM,),
)
