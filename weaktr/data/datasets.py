"""torch data sets of both stages, and a sampler that can start at any batch.

What item i looks like in epoch e depends on (seed, e, i) alone: not on the number of workers,
the order of reading or what was read before. So a killed and resumed run sees the same pixels.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from weaktr.data.classes import IGNORE
from weaktr.data.io import image_size, read_image, read_labels, require_same_size
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.parallel import ordered_map
from weaktr.data.patch_targets import SoftMap, normalised, shares_of_mask
from weaktr.data.problems import DataError, Problem
from weaktr.data.stored_maps import SoftLabels, read_soft_labels
from weaktr.data.transforms import Crop

Transform = Callable[..., Any]


def mixed_seed(*numbers: int) -> int:
    """One seed 0..2^63-1 from several integers, equal for equal numbers, else different."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def multi_hot(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """float32 [C] of 0 and 1 from class indices."""
    target = torch.zeros(num_classes)
    target[list(labels)] = 1.0
    return target


class SeededDataset(Dataset[tuple[torch.Tensor, ...]]):
    """Samples with a transform whose random numbers come from (seed, epoch, index).

    Args:
        samples: what is loaded.
        transform: what is done to it.
        seed: of the random numbers.
        crops: items of each sample, whose indices follow each other.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Transform, seed: int, crops: int = 1
    ) -> None:
        self.samples = tuple(samples)
        self.transform = transform
        self.seed = seed
        self.crops = crops
        # shared memory: workers that outlive an epoch see the next one's number
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.samples) * self.crops

    def sample_of(self, index: int) -> Sample:
        """The sample of an item."""
        return self.samples[index // self.crops]

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of `epoch`; call before iterating over the loader."""
        self._epoch.fill_(epoch)

    def _transformed(self, index: int, *inputs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
            seed = mixed_seed(self.seed, int(self._epoch), index)
            torch.default_generator.manual_seed(seed)
            return self.transform(*inputs)


class CamDataset(SeededDataset):
    """Stage 1: images and their image-level labels. Never opens a mask.

    Args:
        manifest: every sample has labels.
        transform: `tv_tensors.Image` uint8 [3, h, w] -> float32 [3, H, W].
        seed: of the random numbers of the transform.

    Raises:
        ValueError: a sample's labels are not known or outside the classes.
    """

    def __init__(self, manifest: Manifest, transform: Transform, *, seed: int = 0) -> None:
        self.num_classes = len(manifest.classes)
        _require_labels(manifest)
        super().__init__(manifest.samples, transform, seed)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 [3, H, W] and multi-hot target float32 [C].

        Raises:
            DataError: the image is missing or corrupt.
        """
        sample = self.samples[index]
        image = self._transformed(index, tv_image(sample))
        return image, multi_hot(sample.labels or (), self.num_classes)


class EncodedCamDataset(SeededDataset):
    """Stage 1 on what a frozen backbone gave for the photographs, in the views of `CamDataset`.

    Args:
        manifest: see `CamDataset`.
        draw: size (H, W) of a photograph -> a crop, by torch's random numbers.
        encoded: samples and a crop of each -> tensors of each.
        seed: of the random numbers.

    Raises:
        ValueError: see `CamDataset`; a photograph has no size.
    """

    def __init__(
        self,
        manifest: Manifest,
        draw: Callable[[tuple[int, int]], Crop],
        encoded: Callable[[Mapping[Sample, Crop]], Sequence[Sequence[torch.Tensor]]],
        *,
        seed: int = 0,
    ) -> None:
        self.num_classes = len(manifest.classes)
        _require_labels(manifest)
        super().__init__(manifest.samples, draw, seed)
        self._encoded = encoded
        self._sizes = [*ordered_map(_size_of, manifest.samples)]

    def crop(self, index: int) -> Crop:
        """What is seen of a photograph in the present epoch."""
        crop: Crop = self._transformed(index, self._sizes[index])
        return crop

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """The tensors of a photograph, and its multi-hot target float32 [C].

        Raises:
            DataError: the photograph is missing or corrupt.
        """
        (item,) = self.__getitems__([index])
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """The items of a batch, for which `encoded` is called once; torch's loader asks for it."""
        crops = {self.samples[index]: self.crop(index) for index in indices}
        tensors = dict(zip(crops, self._encoded(crops), strict=True))
        samples = [self.samples[index] for index in indices]
        return [(*tensors[s], multi_hot(s.labels or (), self.num_classes)) for s in samples]


def _require_labels(manifest: Manifest) -> None:
    """Raise `DataError` for a sample whose labels are not known or outside the classes."""
    count = len(manifest.classes)
    for sample in manifest:
        if sample.labels is None:
            message = "has no image-level labels, which stage 1 trains from"
            raise DataError(Problem(str(sample.image), sample.source, message))
        if any(not 0 <= label < count for label in sample.labels):
            message = f"labels: expected 0..{count - 1}, got {sample.labels}"
            raise DataError(Problem(str(sample.image), sample.source, message))


def _size_of(sample: Sample) -> tuple[int, int]:
    return image_size(sample.image, sample.source, sample.exif)


class _Read(NamedTuple):
    """An image with its labels, before the transform."""

    sample: Sample
    #: image, labels of pixels; where they are wanted the whole image as a `SoftMap`, soft labels
    inputs: list[torch.Tensor]
    soft_labels: tuple[int, ...] | None  #: which labels those are of


class SegDataset(SeededDataset):
    """Stage 2: images and labels of every pixel (pseudo labels, or true masks for comparison), or
    shares of labels in every patch.

    Args:
        manifest: samples that all have masks.
        transform: (`tv_tensors.Image` uint8 [3, h, w], `tv_tensors.Mask` uint8 [h, w]) ->
            (float32 [3, H, W], uint8 [H, W]); with soft labels see `seg_train_transform`.
        seed: of the random numbers of the transform.
        patch_size: side in pixels of the patches whose shares of labels are wanted; None = labels
            of pixels.
        soft: name of a sample -> the file of its soft labels (`read_soft_labels`), from which its
            shares come in place of its mask.
        with_classes: whether items have `shown_classes` too, and which patches are no padding.
        crops: items of each image, whose indices follow each other.

    Raises:
        DataError: a sample without mask, or, with classes, without image-level labels.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        *,
        seed: int = 0,
        patch_size: int | None = None,
        soft: Mapping[str, Path] | None = None,
        with_classes: bool = False,
        crops: int = 1,
    ) -> None:
        self.num_labels, self.patch_size = manifest.classes.num_labels, patch_size
        self.soft, self.with_classes = soft or {}, with_classes
        for sample in manifest:
            lacking = "mask" if sample.mask is None else ""
            if with_classes and sample.labels is None:
                lacking = "image-level labels"
            if lacking:
                message = f"has no {lacking}, which stage 2 trains from"
                raise DataError(Problem(str(sample.image), sample.source, message))
        super().__init__(manifest.samples, transform, seed, crops)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """Image float32 [3, H, W] and labels uint8 [H, W], 255 = ignore; with `patch_size` in their
        place shares float32 [L, patches of H, patches of W], all 0 = ignore.

        With classes then `shown_classes`, and float32 [patches of H, patches of W]: 1, or 0 for
        patches that are nothing but padding.

        Raises:
            DataError: a file is missing or corrupt, sizes differ, or a label is outside.
        """
        return self._cropped(index, self._read(self.sample_of(index)))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """The items of a batch; of one image side by side, after reading it once."""
        items = []
        for _, group in groupby(indices, lambda index: index // self.crops):
            of_image = [*group]
            read = self._read(self.sample_of(of_image[0]))
            items += [self._cropped(index, read) for index in of_image]
        return items

    def _read(self, sample: Sample) -> _Read:
        """An image and its labels as they are stored."""
        assert sample.mask is not None  # checked above
        image = tv_image(sample)
        labels = read_labels(sample.mask, self.num_labels, sample.source, mask_ids=sample.mask_ids)
        require_same_size(labels, tuple(image.shape[-2:]), sample.mask, sample.source)
        inputs = [image, tv_tensors.Mask(torch.from_numpy(labels))]
        if self.with_classes:
            inputs.append(SoftMap.of(torch.ones(1, 1, 1), labels.shape))
        soft = self._soft_labels(sample, labels.shape)
        if soft is not None:
            inputs.append(SoftMap.of(torch.from_numpy(soft.shares), labels.shape))
        return _Read(sample, inputs, None if soft is None else soft.labels)

    def _cropped(self, index: int, read: _Read) -> tuple[torch.Tensor, ...]:
        """The item of an image that was read; leaves that as it is."""
        sample, inputs, soft_labels = read
        image, mask, *of_patches = self._transformed(index, *inputs)
        target = mask
        if soft_labels is not None:
            shares = of_patches[-1]
            target = mask.new_zeros((self.num_labels, *shares.shape[1:]), dtype=torch.float32)
            target[list(soft_labels)] = shares
        elif self.patch_size is not None:
            target = shares_of_mask(mask, self.num_labels, self.patch_size)
        if not self.with_classes:
            return image, target
        shown = shown_classes(sample.labels or (), mask, self.num_labels - 1)
        return image, target, shown, of_patches[0][0]

    def shares(self, index: int, grid: tuple[int, int]) -> torch.Tensor:
        """What share of each cell of a grid over the whole photograph has which label.

        Args:
            index: of the sample.
            grid: h rows and w columns.

        Returns:
            float32 [L, h, w], sums to 1; 0 in all labels = ignore.

        Raises:
            DataError: a file is missing or corrupt, or a label is outside.
        """
        sample = self.samples[index]
        assert sample.mask is not None  # checked above
        labels = read_labels(sample.mask, self.num_labels, sample.source, mask_ids=sample.mask_ids)
        soft = self._soft_labels(sample, labels.shape)
        if soft is None:
            own = torch.tensor(sorted({0, *np.unique(labels).tolist()} - {IGNORE}))
            maps = torch.from_numpy(labels) == own[:, None, None]
        else:
            own, maps = torch.tensor(soft.labels), torch.from_numpy(soft.shares)
        pooled = F.adaptive_avg_pool2d(maps.float(), grid)
        shares = pooled.new_zeros((self.num_labels, *grid)).index_copy_(0, own, pooled)
        return normalised(shares)

    def mass(self, sample: Sample) -> torch.Tensor:
        """What share of a whole photograph has which label, of all its pixels.

        Returns:
            float64 [L]; what is missing to 1 is ignored.

        Raises:
            DataError: a file is missing or corrupt, or a label is outside.
        """
        assert sample.mask is not None  # checked above
        labels = read_labels(sample.mask, self.num_labels, sample.source, mask_ids=sample.mask_ids)
        soft = self._soft_labels(sample, labels.shape)
        if soft is None:
            counts = torch.from_numpy(labels).flatten().bincount(minlength=IGNORE + 1)
            return counts[: self.num_labels].double() / labels.size
        own = normalised(torch.from_numpy(soft.shares).double()).mean((1, 2))
        return own.new_zeros(self.num_labels).index_copy_(0, torch.tensor(soft.labels), own)

    def _soft_labels(self, sample: Sample, size: tuple[int, ...]) -> SoftLabels | None:
        """Where shares of patches are wanted, and there is a file of them."""
        path = self.soft.get(sample.name)
        if self.patch_size is None or path is None:
            return None
        return read_soft_labels(path, self.num_labels, (size[0], size[1]))


def shown_classes(labels: Sequence[int], mask: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Which classes a crop of a photograph shows.

    Args:
        labels: class indices of the whole photograph.
        mask: uint8 [H, W] of the crop, class k as k + 1.
        num_classes: C.

    Returns:
        float32 [C]: 1 = the mask has it, 0 = it is not in the photograph, -1 = not known: it is in
        the photograph, and nowhere in the mask.
    """
    occurs = torch.bincount(mask.flatten().int(), minlength=256)[1 : num_classes + 1] > 0
    return torch.where(occurs, 1.0, -multi_hot(labels, num_classes))


def tv_image(sample: Sample) -> tv_tensors.Image:
    """The photograph of a sample, uint8 [3, h, w]."""
    # not made contiguous: torch resizes images faster whose colours lie side by side
    return tv_tensors.Image(torch.from_numpy(read_image(sample)).permute(2, 0, 1))


class EpochSampler(Sampler[list[int]]):
    """Whole batches of indices in an order that depends on (seed, epoch) alone.

    What is left at the end of an epoch, less than a batch, is left out of it.

    Use as ``DataLoader(dataset, batch_sampler=sampler)``. A resumed run continues an epoch with
    `set_epoch(epoch, start_batch)`.

    Args:
        length: size of the data set.
        batch_size: indices a batch.
        seed: of the order.
        rows: which items of every batch are handed out: those of one process of several.
        crops: so many indices that follow each other stay side by side; divides `length`.

    Raises:
        ValueError: `length` or `batch_size` < 1, or fewer indices than a batch has.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        rows: slice = slice(None),
        crops: int = 1,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(
                f"length, batch_size: expected both >= 1, got {length} and {batch_size}"
            )
        if length < batch_size:
            raise ValueError(
                f"batch_size: {batch_size} is more than the {length} samples, so no batch is "
                "whole; take a smaller one"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rows, self.crops = rows, crops
        self.epoch, self.start_batch = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        return self.length // self.batch_size

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch and the batch to start with.

        Raises:
            ValueError: a number is negative, or `start_batch` is past the epoch's end.
        """
        if epoch < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"epoch, start_batch: expected >= 0 and 0..{self.batches_per_epoch}, "
                f"got {epoch} and {start_batch}"
            )
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for batch in range(self.start_batch, self.batches_per_epoch):
            yield self._batch(order, batch)[self.rows]

    def order(self, epoch: int) -> list[int]:
        """All indices in the order of an epoch."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order: list[int] = torch.randperm(self.length // self.crops, generator=generator).tolist()
        return [self.crops * image + crop for image in order for crop in range(self.crops)]

    def batch(self, epoch: int, batch: int) -> list[int]:
        """The indices of a whole batch of an epoch, of all processes."""
        return self._batch(self.order(epoch), batch)

    def _batch(self, order: list[int], batch: int) -> list[int]:
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]
