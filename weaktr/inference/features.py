"""Features of a frozen backbone: of every patch, and of the photograph as a whole, cached.

encoder = FeatureEncoder(BackboneConfig("vit_small_patch14_dinov2", weights=FILE), device)
store = FeatureStore(encoder, ArrayCache(folder), View(448))
for sample, features in store.of(samples):
    features.patches  # [h, w, D]
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weaktr.config import Amp, BackboneConfig
from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.data.array_cache import ArrayCache, Arrays
from weaktr.data.photographs import Photograph, read_resized
from weaktr.inference.cams import CPU_TOKENS, GPU_TOKENS
from weaktr.inference.encoded import EncodedPhotographs
from weaktr.inference.transfer import pinned
from weaktr.messages import first_lines
from weaktr.models.checkpoints import OF_THE_RUN
from weaktr.models.inference import for_inference
from weaktr.models.packing import pack
from weaktr.models.precision import autocast, inference_amp
from weaktr.models.pretrained import load_backbone
from weaktr.models.vit import ViT, blocks_of
from weaktr.ops.upload import upload
from weaktr.outputs import fingerprint
from weaktr.recipes import as_tree

log = logging.getLogger("weaktr")

#: How many times as long as wide a photograph is seen; a longer one is squeezed.
MOST_ASPECT = 8
#: Goes up whenever the same photograph, weights and settings give other features.
VERSION = 1


class View(NamedTuple):
    """How the encoder sees a photograph.

    Args:
        short_side: in pixels; both sides become the nearest multiples of a patch.
        flipped: mirrored left and right; its features are mirrored back.
    """

    short_side: int = 448
    flipped: bool = False

    def size_of(self, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
        """Height and width in pixels of a photograph of `size` (H, W), whole patches.

        The proportions stay, up to `MOST_ASPECT`.
        """
        scale = self.short_side / min(size)
        height, width = (
            max(1, round(min(side * scale, MOST_ASPECT * self.short_side) / patch_size))
            for side in size
        )
        return height * patch_size, width * patch_size


class FeatureInputs(NamedTuple):
    """A photograph as the encoder takes it."""

    photograph: Photograph
    pixels: Tensor  #: uint8 [h, w, 3], whole patches
    view: View

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


class Features(NamedTuple):
    """Of one photograph, laid out as it is; on the CPU, not to be written to.

    float16; float32 where that has no numbers so large.
    """

    patches: Tensor  #: [h, w, D]: the last block after the backbone's final norm
    token: Tensor  #: [D]: the mean class token, likewise; of the patches where there is none
    layers: tuple[Tensor, ...] = ()  #: [h, w, D]: of each block that was asked for

    def are_finite(self) -> Tensor:
        """bool [] on their device."""
        parts = (self.patches, self.token, *self.layers)
        return torch.stack([part.isfinite().all() for part in parts]).all()


class FeatureEncoder:
    """A frozen backbone (`weaktr.inference.encoded.Encoder`).

    Args:
        config: the backbone and its weights; of a model's configuration only these count. With
            `image_size` at what the weights were trained at (DINOv2: 518), their positions are
            resized once, to each photograph's grid.
        device: where it runs.
        amp: autocast; "auto" = fp16 on CUDA, bf16 on CPUs that have AVX512-BF16 or AMX.
        layers: further blocks whose patches are kept, from 0; -1 = the last.
        vit: the backbone with its weights; None = it is made from `config`.

    Raises:
        ValueError, FileNotFoundError: see `ViT` and `load_backbone`; no such layer.
    """

    def __init__(
        self,
        config: BackboneConfig,
        device: torch.device,
        *,
        amp: Amp = "auto",
        layers: Sequence[int] = (),
        vit: ViT | None = None,
    ) -> None:
        if vit is None:
            vit = ViT(config)
            load_backbone(vit, config)
        self.device, self.amp = device, inference_amp(amp, device)
        self.layers = blocks_of(layers, len(vit.blocks))
        names = (field.name for field in fields(BackboneConfig))
        self.config = BackboneConfig(**{name: getattr(config, name) for name in names})
        self.weights = vit.requires_grad_(False).eval().to(device)
        self.vit = for_inference(self.weights, self.amp, CPU_TOKENS)

    @property
    def advice(self) -> str:
        """See `Encoder`."""
        return ", in float32 too"

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return self.vit.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.patch_size

    @cached_property
    def identity(self) -> str:
        """See `Encoder`: the content of the weights and all settings that change the features."""
        settings = network_of(self.config), self.amp, self.layers
        weights = self.vit.normalization, digest_of_weights(self.weights)
        return fingerprint("features", VERSION, *settings, *weights)

    def read(self, sample: Sample, view: View) -> FeatureInputs:
        """See `Encoder`; resized by Pillow's bicubic filter."""
        return self.inputs(read_resized(sample, lambda s: view.size_of(s, self.patch_size)), view)

    def inputs(self, photograph: Photograph, view: View) -> FeatureInputs:
        """The inputs of a photograph whose pixels are whole patches."""
        return FeatureInputs(photograph, pinned(photograph.pixels, self.device), view)

    def fits(self, batch: Sequence[FeatureInputs], further: FeatureInputs) -> bool:
        """See `Encoder`: on a GPU by the patches; a CPU takes one photograph at a time."""
        if self.device.type == "cpu":
            return False
        pixels = sum(one.pixels.numel() // 3 for one in (*batch, further))
        return pixels // self.patch_size**2 <= GPU_TOKENS

    def encode(self, batch: Sequence[FeatureInputs]) -> list[dict[str, Tensor]]:
        """See `Encoder`: `Features` by name."""
        return [
            {"patches": one.patches, "token": one.token}
            | ({"layers": torch.stack(one.layers)} if one.layers else {})
            for one in self.features(batch)
        ]

    @torch.inference_mode()
    def features(self, batch: Sequence[FeatureInputs]) -> list[Features]:
        """The features of each photograph, on the encoder's device; all go through it together.

        Those of a photograph that float16 does not hold are computed again, and kept, in float32.
        """
        found = self._features(batch, self.vit, self.amp, torch.float16)
        are_held = torch.stack([one.are_finite() for one in found]).tolist()
        return [
            own if is_held else self._features([one], self.weights, "none", torch.float32)[0]
            for one, own, is_held in zip(batch, found, are_held, strict=True)
        ]

    def _features(
        self, batch: Sequence[FeatureInputs], vit: ViT, amp: Amp, dtype: torch.dtype
    ) -> list[Features]:
        """`features` by a form of the backbone, in a precision, kept in `dtype`."""
        mean, std = (upload(torch.tensor(v), self.device).view(3, 1, 1) for v in vit.normalization)
        images = []
        for one in batch:
            pixels = upload(one.pixels, self.device).permute(2, 0, 1)
            image = (pixels.float() / 255 - mean) / std
            images.append(image.flip(-1) if one.view.flipped else image)
        with autocast(amp, self.device):
            equal = [torch.stack(list(group)) for _, group in groupby(images, lambda x: x.shape)]
            embedded = [vit.embed(group) for group in equal]
            prefix = vit.num_prefix_tokens
            tokens = embedded[0] if len(embedded) == 1 else pack(embedded, prefix)
            kept, current = [], tokens.tokens
            for index in range(len(vit.blocks)):
                current = vit.run_block(index, current, tokens).tokens
                if index in self.layers:
                    kept.append(vit.norm(current).to(dtype))
            normed = vit.norm(current).float()
        rows = [
            [row for part in tokens.split(values) for row in part] for values in (normed, *kept)
        ]
        size = self.patch_size
        features = []
        for one, (last, *layers) in zip(batch, zip(*rows, strict=True), strict=True):
            height, width = (side // size for side in one.pixels.shape[:2])
            maps = [
                part[prefix:].to(dtype).unflatten(0, (height, width)) for part in (last, *layers)
            ]
            if one.view.flipped:
                maps = [part.flip(1) for part in maps]
            in_order = dict(zip(sorted(set(self.layers)), maps[1:], strict=True))
            token = last[: vit.num_class_tokens or None].mean(0).to(dtype)
            features.append(Features(maps[0], token, tuple(in_order[i] for i in self.layers)))
        return features


class FeatureStore:
    """Features of photographs by a cache; see `EncodedPhotographs`, whose arguments these are.

    Args:
        encoder: of the features.
        cache: where they are kept.
        view: in which photographs are seen where no other is asked for.
        contents: what is known of files already.
        title: of the work, for the progress.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        cache: ArrayCache,
        view: View = View(),  # noqa: B008 - it cannot be changed
        contents: Contents | None = None,
        *,
        title: str = "features",
    ) -> None:
        self.encoder, self.view = encoder, view
        self._encoded: EncodedPhotographs[View, FeatureInputs] = EncodedPhotographs(
            encoder, cache, contents, title=title
        )
        #: see `EncodedPhotographs`
        self.left_out = self._encoded.left_out

    def of(
        self, samples: Sequence[Sample], view: View | None = None
    ) -> Iterator[tuple[Sample, Features]]:
        """The features of every sample in order, those that are missing computed on the way.

        Photographs that cannot be read are left out, named in the log and in `left_out`.
        """
        known = set(self.left_out)
        for sample, arrays in self._encoded.arrays_of(samples, lambda _: view or self.view):
            yield sample, _features(arrays)
        lines = [problem for name, problem in self.left_out.items() if name not in known]
        for line in first_lines(lines):
            log.warning("left out: %s", line)

    def get(self, sample: Sample, view: View | None = None) -> Features:
        """The features of one sample; usable in threads.

        Raises:
            DataError: the photograph cannot be read, or does not fit the memory.
        """
        (arrays,) = self._encoded.arrays([sample], lambda _: view or self.view)
        return _features(arrays)

    def find(self, sample: Sample, view: View | None = None) -> Features | None:
        """The features of one sample if the cache has them; usable in threads.

        Raises:
            DataError: the photograph cannot be read.
        """
        arrays = self._encoded.find(sample, view or self.view)
        return None if arrays is None else _features(arrays)

    def fill(self, samples: Sequence[Sample], view: View | None = None) -> None:
        """Compute what the cache lacks, until it takes no more; see `EncodedPhotographs`."""
        self._encoded.fill(samples, lambda _: view or self.view)

    def key(self, sample: Sample, view: View | None = None) -> str:
        """Under which the cache has the features of a sample; see `get`."""
        return self._encoded.key(sample, view or self.view)


def _features(arrays: Arrays) -> Features:
    """Features of what `FeatureEncoder.encode` gave."""
    patches, token = (torch.from_numpy(arrays[name]) for name in ("patches", "token"))
    layers = torch.from_numpy(arrays["layers"]).unbind() if "layers" in arrays else ()
    return Features(patches, token, tuple(layers))


def network_of(config: BackboneConfig) -> dict[str, object]:
    """The settings of a model, less those on which no result depends once it has its weights."""
    return {key: value for key, value in as_tree(config).items() if key not in OF_THE_RUN}


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
