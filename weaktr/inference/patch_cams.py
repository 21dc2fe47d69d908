"""CAMs of a classifier of patches (`weaktr.models.PatchModel`).

A class's map is its share of what the background and the likeliest class have of a pixel together,
so that the likeliest class is above one half where it is likelier than the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.config import LabelConfig
from weaktr.data import Sample
from weaktr.data.photographs import read_photograph, reduced
from weaktr.inference.cams import CPU_BATCH, CamInputs, Cams, CamsOfModel, scaled_to
from weaktr.inference.features import FeatureEncoder, FeatureInputs, Features, FeatureStore, View
from weaktr.inference.transfer import pinned
from weaktr.models import PatchModel, Stage1Model
from weaktr.models.memory import is_out_of_memory
from weaktr.ops.upload import upload

#: Fields of `LabelConfig` that have no effect on them.
WITHOUT_EFFECT = ("attention_type", "refine", "amp", "batch_tokens")


class CamsOfPatches:
    """CAMs of a `PatchModel` (`weaktr.inference.cams.CamSource`).

    Args:
        model: in eval mode, on its device.
        settings: see `LabelConfig`. Scales are factors on the short side at which the model sees
            photographs; those of `WITHOUT_EFFECT` do nothing.
        predict_above, with_features, with_views: see `CamsOfModel`.
        cache: of the features of photographs, see `fill_cache`; None = they are not kept.
    """

    def __init__(
        self,
        model: PatchModel,
        settings: LabelConfig,
        predict_above: float | None = None,
        *,
        with_features: bool = False,
        with_views: bool = False,
        cache: FeatureStore | None = None,
    ) -> None:
        self.model, self.settings, self.predict_above = model, settings, predict_above
        self.with_features, self.with_views, self.cache = with_features, with_views, cache
        self.num_labels: int | None = model.num_classes + 1
        self.device = model.center.device
        self.encoder = encoder_of(model) if cache is None else cache.encoder

    @property
    def views(self) -> list[View]:
        """How each photograph is seen."""
        short_side = self.model.config.patches.short_side
        sides = [max(1, round(short_side * scale)) for scale in self.settings.scales]
        flips = (False, True) if self.settings.flip else (False,)
        return [View(side, flipped) for side in sides for flipped in flips]

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether the sample has an image-level label, or may get one."""
        return bool(sample.labels) or (sample.labels is None and self.predict_above is not None)

    def fill_cache(self, samples: Sequence[Sample]) -> None:
        """Compute the features that the cache lacks of samples, until it takes no more.

        What it lacks then is computed in every pass anew, and not kept.
        """
        if self.cache is not None:
            for view in self.views:
                self.cache.fill(samples, view)

    def files(self, sample: Sample) -> tuple[Path, ...]:
        """See `CamSource`."""
        return (sample.image,)

    def read(self, sample: Sample) -> CamInputs:
        """See `CamSource`."""
        photograph = read_photograph(sample, self.settings.max_side)
        image = pinned(photograph.pixels, self.device)
        return CamInputs(
            sample, photograph, image, [self._part(sample, view) for view in self.views]
        )

    def inputs(self, sample: Sample, pixels: np.ndarray) -> CamInputs:
        """The inputs of a photograph in memory, uint8 [H, W, 3]."""
        photograph = reduced(pixels, self.settings.max_side)
        patch = self.encoder.patch_size
        height, width = pixels.shape[:2]
        parts = [
            pinned(scaled_to(pixels, view.size_of((height, width), patch)), self.device)
            for view in self.views
        ]
        return CamInputs(sample, photograph, pinned(photograph.pixels, self.device), parts)

    def _part(self, sample: Sample, view: View) -> Tensor:
        """`stacked` features where the cache has them, else pixels uint8 [h, w, 3]."""
        found = None if self.cache is None else self.cache.find(sample, view)
        if found is None:
            return self.encoder.read(sample, view).pixels
        return pinned(stacked(found).numpy(), self.device)

    def fits(self, batch: Sequence[CamInputs], further: CamInputs) -> bool:
        """See `CamSource`: by `batch_size`, and on a GPU by what the encoder takes."""
        if self.device.type == "cpu":
            return len(batch) < min(CPU_BATCH, self.settings.batch_size)
        rows = [row for one in (*batch, further) for row in self._encodable(one)]
        fits = not rows or self.encoder.fits(rows[:-1], rows[-1])
        return fits and len(batch) < self.settings.batch_size

    def _encodable(self, inputs: CamInputs) -> list[FeatureInputs]:
        """The views of a photograph whose features are yet to be computed."""
        return [
            FeatureInputs(inputs.photograph, part, view)
            for part, view in zip(inputs.parts, self.views, strict=True)
            if part.dtype == torch.uint8
        ]

    @torch.inference_mode()
    def cams(self, batch: Sequence[CamInputs]) -> list[Cams]:
        """See `CamSource`. On a CPU each view has a forward pass of its own."""
        computed = iter(self._computed([row for one in batch for row in self._encodable(one)]))
        return [
            self._cams(
                one,
                [
                    next(computed) if part.dtype == torch.uint8 else upload(part, self.device)
                    for part in one.parts
                ],
            )
            for one in batch
        ]

    def _computed(self, rows: Sequence[FeatureInputs]) -> list[Tensor]:
        """The `stacked` features of views, several in a pass unless the memory does not hold it."""
        if self.device.type != "cpu" and len(rows) > 1:
            try:
                return [stacked(features) for features in self.encoder.features(rows)]
            except RuntimeError as error:
                if not is_out_of_memory(error) or rows[0].photograph is not rows[-1].photograph:
                    raise  # who made the batch makes it smaller
        return [stacked(features) for row in rows for features in self.encoder.features([row])]

    def _cams(self, inputs: CamInputs, maps: Sequence[Tensor]) -> Cams:
        """The CAMs of a photograph, the mean over its views, whose features are `stacked`."""
        classes, probabilities = inputs.sample.labels, None
        if classes is None and self.predict_above is not None:
            likely = self.model.class_probabilities(maps[0].flatten(0, 1)).tolist()
            classes = tuple(i for i, share in enumerate(likely) if share > self.predict_above)
            probabilities = tuple(likely[index] for index in classes)
        classes = tuple(classes or ())
        size = inputs.photograph.pixels.shape[:2]
        views = []
        for seen in maps:
            shares = self.model.shares(seen.flatten(0, 1), classes)
            small = shares.T.unflatten(1, seen.shape[:2])
            views.append(F.interpolate(small[None], size, mode="bilinear", align_corners=False)[0])
        mean = views[0] if len(views) == 1 else torch.stack(views).mean(0)
        features = None
        if self.with_features:
            features = maps[0][..., self.model.width :].float().permute(2, 0, 1)
        alone = tuple(map(against_background, views)) if self.with_views else ()
        return Cams(classes, against_background(mean), probabilities, features, alone, odds=True)


def against_background(shares: Tensor) -> Tensor:
    """The maps of classes by which alone each pixel's shares are known.

        m_c = s_c / (s_0 + max over classes of s)

    Unlike s_c / (s_0 + s_c) they keep how much likelier one class is than another where the
    background has nearly nothing.

    Args:
        shares: float32 [K + 1, H, W] of background and classes, sums to 1.

    Returns:
        float32 [K, H, W] in [0, 1], see `Cams.odds`.
    """
    classes = shares[1:]
    if not len(classes):
        return classes
    return classes / (shares[0] + classes.amax(0))


def stacked(features: Features) -> Tensor:
    """The features that a `PatchModel` takes: its layers, then the last block, [h, w, F + D]."""
    return torch.cat([*features.layers, features.patches], 2)


def encoder_of(model: PatchModel) -> FeatureEncoder:
    """The frozen backbone of a model, which gives the features that it takes."""
    layers = model.config.patches.layers
    return FeatureEncoder(model.config, model.center.device, layers=layers, vit=model.vit)


def cams_of(
    model: Stage1Model,
    settings: LabelConfig,
    predict_above: float | None = None,
    *,
    with_features: bool = False,
    with_views: bool = False,
) -> CamsOfModel | CamsOfPatches:
    """The source of CAMs of a stage-1 model of either kind; the arguments are the sources'."""
    if isinstance(model, PatchModel):
        return CamsOfPatches(
            model, settings, predict_above, with_features=with_features, with_views=with_views
        )
    return CamsOfModel(
        model, settings, predict_above, with_features=with_features, with_views=with_views
    )
