"""The work of `bench_training.py`: step, loading, and both together, of both stages in every way.

As a program: one way in a process of its own, see `turns.py`.

    python bench/training_work.py step cam weaktr cpu 8
    python bench/training_work.py loading seg published FOLDER
    python bench/training_work.py together cam "weaktr bf16" cpu 8 FOLDER 3 1

FOLDER is one that `write_photographs` filled; then the number of batches, and of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import published
import torch
import turns
from cam_work import BACKBONE, CLASSES, model_and_images
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import multilabel_soft_margin_loss
from torch.utils.data import DataLoader, Dataset

from weaktr.config import Amp, SegModelConfig
from weaktr.data.classes import IGNORE, Classes
from weaktr.data.datasets import CamDataset, SeededDataset, SegDataset, multi_hot
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.transforms import cam_train_transform, seg_train_transform
from weaktr.models import Segmenter
from weaktr.models.dropping import Part
from weaktr.models.precision import autocast
from weaktr.training.loader import EpochLoader
from weaktr.training.micro_batches import MicroBatches
from weaktr.training.optimizers import cam_optimizer, segmenter_optimizer

LABELS = CLASSES + 1
CAM_SIDE, SEG_SIDE = 224, 480
TILE, START = 120, 9.0
#: Different photographs.
PHOTOGRAPHS = 24
Loss = Callable[[Tensor, Tensor], Tensor]


# ---- photographs --------------------------------------------------------------------------------


def write_photographs(folder: Path, count: int = PHOTOGRAPHS) -> Path:
    """Drawn scenes with noise as JPEGs of 500 x 375, about as large as photographs, with masks."""
    from scale_work import HEIGHT, WIDTH, large_jpeg

    from weaktr.data.sources.scene_drawing import render_scene

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(large_jpeg(number))
        mask = render_scene(number, size=WIDTH, seed=0, split="bench")[1][:HEIGHT]
        Image.fromarray(np.ascontiguousarray(mask)).save(folder / f"{number}.png")
    return folder


def files_in(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """`count` photographs, some of them several times, and their masks."""
    numbers = [number % PHOTOGRAPHS for number in range(count)]
    return [folder / f"{n}.jpg" for n in numbers], [folder / f"{n}.png" for n in numbers]


def dataset_of(stage: str, way: str, folder: Path, count: int) -> Dataset[Any]:
    """The images of a stage, loaded by a way."""
    photographs, masks = files_in(folder, count)
    labels = [(index % CLASSES, (7 * index + 3) % CLASSES) for index in range(count)]
    if way.startswith("published"):
        import published_loading

        if stage == "seg":
            return published_loading.SegImages(photographs, masks)
        targets = torch.stack([multi_hot(own, CLASSES) for own in labels])
        return published_loading.CamImages(photographs, targets, CAM_SIDE)
    names = Classes(tuple(f"class{index:02}" for index in range(CLASSES)))
    samples = tuple(
        Sample(str(index), photographs[index], labels[index], masks[index], "")
        for index in range(count)
    )
    manifest = Manifest("bench", "train", names, samples)
    if stage == "cam":
        return CamDataset(manifest, cam_train_transform(CAM_SIDE))
    return SegDataset(manifest, seg_train_transform(SEG_SIDE))


# ---- the work -----------------------------------------------------------------------------------


def loading(stage: str, way: str, folder: str) -> Callable[[], Tensor]:
    """Load every photograph once, on one core; returns the mean colour."""
    torch.set_num_threads(1)
    dataset = dataset_of(stage, way, Path(folder), PHOTOGRAPHS)

    def load() -> Tensor:
        return torch.stack([dataset[i][0].mean((1, 2)) for i in range(PHOTOGRAPHS)]).mean(0)

    return load


#: How the name of a way ends whose blocks are computed again for the gradient.
RECOMPUTE = ", recompute"
#: And of one that computes a batch image by image (`MicroBatches`).
PIECES = ", in pieces of 1"


def amp_of(way: str) -> Amp:
    """How a way computes: ends in " bf16" or not."""
    return "bf16" if way.endswith(" bf16") else "none"


def model_and_loss(
    stage: str, way: str, device: str, batch: int | None = None
) -> tuple[nn.Module, Loss]:
    """A model without dropout, and (images, labels) -> its loss by a way.

    With `batch` the images are a part of so many, and the loss is what they add to that of all.
    """
    is_published = way.startswith("published")
    if stage == "cam":
        cam, *_ = model_and_images(device, 1, 16, 16)

        def cam_loss(images: Tensor, labels: Tensor) -> Tensor:
            outputs = published.cam_forward(cam, images) if is_published else cam(images)
            losses = [multilabel_soft_margin_loss(part.float(), labels) for part in outputs]
            return torch.stack(losses).sum() * (1 if batch is None else len(images) / batch)

        return cam, cam_loss
    torch.manual_seed(0)
    # without dropout, so that both ways see the same network
    config = SegModelConfig(BACKBONE, weights=None, drop_path=0.0, dropout=0.0)
    model = Segmenter(config, LABELS).to(device)

    def seg_loss(images: Tensor, labels: Tensor) -> Tensor:
        if not is_published:
            code = model.encode(images)
            return model.clipped_loss(code, labels, start_value=START, tile=TILE, batch=batch).loss
        return published.clipped_loss(published.patch_logits(model, images), labels, TILE, START)

    return model, seg_loss


def step(stage: str, way: str, device: str, batch: str) -> Callable[[], Tensor]:
    """Forward and backward pass of a batch; returns the loss."""
    count = int(batch)
    in_pieces = way.endswith(PIECES)
    model, loss_of = model_and_loss(stage, way, device, count if in_pieces else None)
    model.recompute_blocks(way.endswith(RECOMPUTE))
    micro = MicroBatches(Part(slice(0, count), count), 1 if in_pieces else count)
    if stage == "cam":
        _, images, labels = model_and_images(device, count, CAM_SIDE, CAM_SIDE)
    else:
        images = torch.randn(count, 3, SEG_SIDE, SEG_SIDE, device=device)
        labels = torch.randint(LABELS, (count, SEG_SIDE, SEG_SIDE), device=device)

    def losses_of(*piece: Tensor) -> dict[str, Tensor]:
        with autocast(amp_of(way), images.device):
            return {"loss": loss_of(*piece)}

    def once() -> Tensor:
        model.zero_grad(set_to_none=True)
        losses = []
        with closing(micro.of([images, labels], losses_of)) as pieces:
            for piece, _ in pieces:
                losses.append(losses_of(*piece)["loss"])
                losses[-1].backward()
        return torch.stack(losses).detach().sum()

    return once


def batches_of(dataset: Dataset[Any], batch: int, workers: int) -> Callable[[], Iterator[Any]]:
    """The batches of the next epoch; ours are loaded by `EpochLoader`."""
    if isinstance(dataset, SeededDataset):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loader, epochs = EpochLoader(dataset, batch, 0, workers, device), iter(range(10**6))
        return lambda: loader.epoch(next(epochs))
    theirs: DataLoader[Any] = DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, pin_memory=torch.cuda.is_available(),
        drop_last=True, persistent_workers=True,  # or the start of processes would be measured
    )  # fmt: skip
    return lambda: iter(theirs)


def together(
    stage: str, way: str, device: str, batch: str, folder: str, batches: str, workers: str
) -> Callable[[], Tensor]:
    """An epoch: so many batches, loaded in other processes, and steps; returns the mean loss."""
    model, loss_of = model_and_loss(stage, way, device)
    optimizer_of: Any = cam_optimizer if stage == "cam" else segmenter_optimizer
    optimizer = optimizer_of(model, 1e-6)
    count = int(batches)
    dataset = dataset_of(stage, way, Path(folder), count * int(batch))
    epoch, where = batches_of(dataset, int(batch), int(workers)), torch.device(device)

    def run() -> Tensor:
        losses = []
        for images, labels in islice(epoch(), count):
            with autocast(amp_of(way), where):
                loss = loss_of(
                    images.to(where, non_blocking=True), labels.to(where, non_blocking=True)
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            # of labelled pixels alone: how many there are, each way draws anew
            losses.append(loss.detach() / (labels != IGNORE).float().mean())
        return torch.stack(losses).mean()

    return run


WORK = {"step": step, "loading": loading, "together": together}


def main(work: str, stage: str, way: str, *rest: str) -> None:
    turns.serve(way, lambda plain: WORK[work](stage, plain, *rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
