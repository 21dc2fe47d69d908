"""What a frozen backbone gives the head and the fusion of stage 1, computed once for a photograph.

Everything that is trained then runs on it: a step takes milliseconds, whatever the backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

from weaktr import processes
from weaktr.config import Amp, TrainCamConfig
from weaktr.contents import Contents
from weaktr.data import DataError, Manifest, Sample
from weaktr.data.array_cache import ArrayCache, Arrays
from weaktr.data.datasets import EncodedCamDataset, tv_image
from weaktr.data.transforms import Crop
from weaktr.inference.cams import CPU_TOKENS, GPU_TOKENS
from weaktr.inference.encoded import EncodedPhotographs
from weaktr.inference.features import digest_of_weights, network_of
from weaktr.inference.transfer import pinned
from weaktr.models.cam import CamModel, HeadInputs
from weaktr.models.inference import for_inference
from weaktr.models.onednn import shared_copy
from weaktr.models.precision import amp_type, autocast, training_amp
from weaktr.ops.upload import upload
from weaktr.outputs import fingerprint

#: Goes up whenever the same photograph, weights and settings give other values.
VERSION = 1
#: Attention is kept in float16 times this, so that weights of a millionth keep their digits.
ATTENTION_SCALE = 1024.0


class CropInputs(NamedTuple):
    """A crop of a photograph as the backbone takes it."""

    pixels: Tensor  #: uint8 [3, H, W]

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


class HeadInputsEncoder:
    """The backbone of a stage-1 model (`weaktr.inference.encoded.Encoder`), which must stay frozen.

    Args:
        model: on its device.
        amp: "none", "tf32", "bf16" or "fp16", as `training_amp` gives it.
    """

    def __init__(self, model: CamModel, amp: Amp) -> None:
        self.model, self.amp, self.weights = shared_copy(model).eval(), amp, model.vit
        self.model.vit = for_inference(self.model.vit, amp, CPU_TOKENS)
        self.device = next(model.parameters()).device

    @property
    def advice(self) -> str:
        """See `Encoder`."""
        if amp_type(self.amp, self.device) is None:
            return " in float16, in which they are kept"
        return "; try train_cam.amp: none"

    @cached_property
    def identity(self) -> str:
        """See `Encoder`: the content of the weights and all settings that change the values."""
        precision = self.amp if self.amp == "tf32" else str(amp_type(self.amp, self.device))
        settings = network_of(self.model.config), precision
        weights = self.model.normalization, digest_of_weights(self.weights)
        return fingerprint("head inputs", VERSION, *settings, *weights)

    @cached_property
    def has_one_row(self) -> bool:
        """Whether all class tokens, and their positions, are the same, as trainings start."""
        vit, count = self.weights, self.model.num_classes
        tokens: list[Tensor | None] = [vit.cls_token]
        if vit.pos_embed is not None and vit.embed_prefix:
            tokens.append(vit.pos_embed[:, :count])
        return all(bool((own == own[:, :1]).all()) for own in tokens if own is not None)

    def read(self, sample: Sample, view: Crop) -> CropInputs:
        """See `Encoder`; the pixels are those of `cam_train_transform`."""
        pixels = view.of(tv_image(sample), self.model.config.image_size)
        return CropInputs(pinned(pixels.numpy(), self.device))

    def fits(self, batch: Sequence[CropInputs], further: CropInputs) -> bool:
        """See `Encoder`: on a GPU by the patches; a CPU takes one crop at a time."""
        if self.device.type == "cpu":
            return False
        pixels = sum(one.pixels.numel() // 3 for one in (*batch, further))
        return pixels // self.model.patch_size**2 <= GPU_TOKENS

    @torch.inference_mode()
    def encode(self, batch: Sequence[CropInputs]) -> list[dict[str, Tensor]]:
        """See `Encoder`: the fields of `HeadInputs` by name, the attention `ATTENTION_SCALE`d."""
        mean, std = (
            upload(torch.tensor(v), self.device).view(3, 1, 1) for v in self.model.normalization
        )
        pixels = torch.stack([upload(one.pixels, self.device) for one in batch])
        with autocast(self.amp, self.device):
            inputs = self.model.head_inputs((pixels.float() / 255 - mean) / std)
        rows = inputs.class_rows[..., :1, :] if self.has_one_row else inputs.class_rows
        kept = inputs._replace(
            class_logits=inputs.class_logits.float(),
            patch_map=inputs.patch_map.half(),
            features=inputs.features.half(),
            class_rows=(rows.float() * ATTENTION_SCALE).half(),
            column_means=(inputs.column_means.float() * ATTENTION_SCALE).half(),
        )
        return [dict(zip(kept._fields, own, strict=True)) for own in zip(*kept, strict=True)]


def as_kept(arrays: Arrays) -> HeadInputs:
    """What the cache has of one crop, as tensors without the axis B."""
    return HeadInputs(*(torch.from_numpy(arrays[name]) for name in HeadInputs._fields))


def as_computed(kept: HeadInputs) -> HeadInputs:
    """A batch of `as_kept` as the model gives it: float32, the attention in its own scale."""
    inputs = HeadInputs(*(part.float() for part in kept))
    return inputs._replace(
        class_rows=inputs.class_rows / ATTENTION_SCALE,
        column_means=inputs.column_means / ATTENTION_SCALE,
    )


def reasons_against(model: CamModel, settings: TrainCamConfig) -> list[str]:
    """Why photographs have to pass through a frozen backbone in every epoch: settings by name.

    Args:
        model: to be trained.
        settings: of its training.
    """
    augment = settings.augment
    wanted = [
        ("backbone_lr", settings.backbone_lr, 0.0),
        ("class_tokens", settings.class_tokens, "frozen"),
        ("augment.scale", [*augment.scale], [1.0, 1.0]),
        ("augment.ratio", [*augment.ratio], [1.0, 1.0]),
        ("augment.randaugment", augment.randaugment, False),
        ("augment.erasing", augment.erasing, 0.0),
    ]
    reasons = [
        f"{name} is {json.dumps(own)}, not {json.dumps(w)}" for name, own, w in wanted if own != w
    ]
    if any(_drops(module) for module in model.vit.modules()):
        reasons.append("cam_model.drop_path (or another dropout of the backbone) is not 0")
    return reasons


def _drops(module: nn.Module) -> bool:
    """Whether a module leaves out something at random during training."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    if isinstance(module, DropPath):
        return bool(module.drop_prob)
    return isinstance(module, PatchDropout) and module.prob > 0


def head_inputs_dataset(
    model: CamModel,
    manifest: Manifest,
    settings: TrainCamConfig,
    cache: ArrayCache,
    contents: Contents,
    seed: int,
) -> EncodedCamDataset:
    """The training images of stage 1, all of which have passed through the backbone.

    Args:
        model: on its device; `reasons_against` has none.
        manifest: of the images.
        settings: of the training.
        cache: where the backbone's results are kept.
        contents: what is known of files already.
        seed: of the training.

    Returns:
        Items are `as_kept` and a multi-hot target.

    Raises:
        DataError: photographs that cannot be read, all at once.
    """
    device = next(model.parameters()).device
    encoder = HeadInputsEncoder(model, training_amp(settings.amp, device))
    store = EncodedPhotographs(encoder, cache, contents, title="backbone, once for all epochs")
    augment = settings.augment

    def draw(size: tuple[int, int]) -> Crop:
        return Crop.draw(size, augment.scale, augment.ratio, augment.flip)

    def encoded(crops: Mapping[Sample, Crop]) -> list[HeadInputs]:
        return [as_kept(arrays) for arrays in store.arrays([*crops], crops.__getitem__)]

    dataset = EncodedCamDataset(manifest, draw, encoded, seed=seed)
    crops = {sample: dataset.crop(index) for index, sample in enumerate(manifest)}
    for flipped, share in ((False, 1 - augment.flip), (True, augment.flip)):
        if share > 0:
            of_view = {sample: crop._replace(flipped=flipped) for sample, crop in crops.items()}
            view_of = of_view.__getitem__
            if processes.count() > 1 and cache.folder is not None:  # each computes its part
                for _ in store.arrays_of(processes.part(manifest.samples), view_of):
                    pass
                processes.wait_for_all()
            for _ in store.arrays_of(manifest.samples, view_of):
                pass
            if store.left_out:
                raise DataError([*store.left_out.values()])
    return dataset
