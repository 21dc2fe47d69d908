"""The work of `bench_label.py`: JPEG files -> PNG files, in every way, and its parts one by one.

As a program: one way in a process of its own. It answers each line of standard input with JSON.

    python bench/label_work.py cams weaktr cpu 2 PHOTOS
    first      label one photograph to warm up: {}
    again      label all of them: {"seconds": ..., "peak": MiB of the process, "masks": FOLDER}
    products   {"gigaflops": of a photograph, "rate": 10⁹ operations a second of a bare product}

PHOTOS has images and a labels.csv. The published way computes CAMs of one photograph after the
other with every attention map kept, writes them as files, and then thresholds them and runs
pydensecrf in as many processes as there are cores.
"""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import published
import torch
import torch.nn.functional as F
from cam_work import BACKBONE, CLASSES
from conftest import MIB, resident
from crf_work import Problem, solver
from PIL import Image
from torch import Tensor

from weaktr.cli.memory import keep_freed_memory
from weaktr.config import CamModelConfig, LabelConfig, PredictConfig, SegModelConfig
from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.data.classes import palette
from weaktr.data.masks import RefinedMasks
from weaktr.inference.cams import CPU_BATCH, CamsOfModel
from weaktr.inference.labels import scores_from_cams
from weaktr.models import CamModel, Segmenter
from weaktr.ops import unary_from_labels, unary_from_probabilities
from weaktr.refine import Maps, choose_refiners, refine
from weaktr.refine.maps import best_labels
from weaktr.stages.label import label
from weaktr.stages.predict import predict

#: What the rows of a group share. Prediction is long, so it has two of the six published scales.
LABEL = LabelConfig(max_side=None)
PREDICT = PredictConfig(max_side=None, ensemble="plain", ratios=(0.75, 1.0))


def read_samples(photos: Path) -> list[Sample]:
    """The images of a folder with their class indices."""
    with open(photos / "labels.csv", encoding="utf-8") as file:
        return [
            Sample(Path(name).stem, photos / name, tuple(map(int, labels.split(";"))), None, "")
            for name, labels in csv.reader(file)
        ]


def cam_model(device: str) -> CamModel:
    torch.manual_seed(0)
    config = CamModelConfig(BACKBONE, weights=None, drop_path=0.0)
    return CamModel(config, CLASSES).to(device).eval()


def cam_source(device: str) -> CamsOfModel:
    return CamsOfModel(cam_model(device), LABEL)


def segmenter(device: str) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegModelConfig(BACKBONE, weights=None), CLASSES + 1).to(device).eval()


def weaktr_way(work: str, amp: Any, crf: bool, device: str) -> Callable[[list[Sample], Path], None]:
    """``weaktr label`` or ``weaktr predict``."""
    changes: dict[str, Any] = {"amp": amp} | ({} if crf else {"crf": None})
    if work == "predict":
        model = segmenter(device)
        chosen = PredictConfig(**(vars(PREDICT) | changes))
        return lambda samples, out: void(predict(model, samples, out, chosen))
    settings = LabelConfig(**(vars(LABEL) | changes))
    source = CamsOfModel(cam_model(device), settings)
    return lambda samples, out: void(label(source, samples, out, settings))


def void(_: object) -> None:
    """Nothing."""


#: What `parts_of_weaktr` times.
PARTS = ("read and resize", "CAMs", "threshold", "CRF", "PNG and digest")


def parts_of_weaktr(samples: list[Sample], out: Path, source: CamsOfModel) -> dict[str, float]:
    """Seconds of each part, one after the other; the CRF in batches, as it is used."""
    seconds = dict.fromkeys(PARTS, 0.0)
    refiners = choose_refiners(LABEL)
    device = source.device
    masks = RefinedMasks(out, refined=True, contents=Contents())
    for first in range(0, len(samples), CPU_BATCH):
        chosen = samples[first : first + CPU_BATCH]
        with timed(seconds, "read and resize", device):
            batch = [source.read(sample) for sample in chosen]
        with timed(seconds, "CAMs", device):
            all_cams = source.cams(batch)
        with timed(seconds, "threshold", device):
            scores = [scores_from_cams(cams.maps, LABEL.threshold) for cams in all_cams]
            plain = [Maps(best_labels(one)[0], len(one), one) for one in scores]
        with timed(seconds, "CRF", device):
            images = [torch.from_numpy(one.photograph.pixels).to(device) for one in batch]
            refined = refine(refiners, images, plain)
        with timed(seconds, "PNG and digest", device):
            for sample, one, two in zip(chosen, plain, refined, strict=True):
                maps = {"plain": one.labels, "refined": two.labels}
                pair = {kind: own.numpy(force=True) for kind, own in maps.items()}
                masks.record(masks.write(sample.name, pair.__getitem__))
    return seconds


def gigaflops(model: CamModel, height: int, width: int) -> float:
    """Of all matrix products of one photograph's CAMs, 2 classes present, in 10⁹ operations."""
    vit, total = model.vit, 0.0
    dim, layers = vit.embed_dim, len(vit.blocks)
    for scale in LABEL.scales:
        image = torch.zeros(1, 3, round(height * scale), round(width * scale))
        (patches,) = vit.embed(image.to(next(model.parameters()).device)).patches
        tokens = patches + CLASSES
        linear = 12 * dim**2 * tokens  # q, k, v, projection and both layers of the MLP
        attention = 2 * dim * tokens**2
        fusion = (dim + 2) * patches**2  # of all heads of a layer
        total += layers * (linear + attention + fusion) + 3 * vit.patch_size**2 * dim * patches
    views = 2 if LABEL.flip else 1
    return 2 * views * total / 1e9


def product_rate(model: CamModel, amp: Any) -> float:
    """The most 10⁹ operations a second of a bare product like those of an MLP, in its layout."""
    twin = CamsOfModel(model, LabelConfig(**(vars(LABEL) | {"amp": amp}))).model
    layer = twin.vit.blocks[0].mlp.fc2
    dtype = torch.bfloat16 if amp == "bf16" else torch.float32
    x = torch.randn(2112, 4 * model.vit.embed_dim, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(50):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return 2 * x.numel() * model.vit.embed_dim / min(seconds) / 1e9


@contextmanager
def timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Add the time of the body of a ``with`` statement."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds[part] += time.perf_counter() - start


@torch.no_grad()
def published_cams(model: CamModel, image: Image.Image, classes: Sequence[int]) -> np.ndarray:
    """CAMs float32 [K, H, W] in [0, 1] of one photograph, one view after the other."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in model.normalization)
    device = next(model.parameters()).device
    labels = torch.zeros(1, CLASSES, device=device)
    labels[0, list(classes)] = 1
    total: Tensor | None = None
    for scale in LABEL.scales:
        size = (round(image.width * scale), round(image.height * scale))
        pixels = np.array(image.resize(size, Image.Resampling.BICUBIC))
        plain = ((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std)[None]
        for view in (plain, plain.flip(-1)):
            cams = published.cams(model, view.to(device), labels)
            size = (image.height, image.width)
            large = F.interpolate(cams, size, mode="bilinear", align_corners=False)[0]
            large = large.flip(-1) if view is not plain else large
            total = large if total is None else total + large
    assert total is not None
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return ((total - low) / (high - low + 1e-8))[list(classes)].cpu().numpy()


def published_label(sample: Sample, out: Path, crf: bool) -> None:
    """Stored CAMs -> mask: softmax with the threshold, pydensecrf, PNG."""
    cams = np.load(out / "cams" / f"{sample.name}.npy")
    image = np.array(Image.open(sample.image).convert("RGB"))
    background = np.full((1, *cams.shape[1:]), LABEL.threshold, np.float32)
    scores = torch.from_numpy(np.concatenate([background, cams])).softmax(0).numpy()
    labels = scores.argmax(0).astype(np.uint8)
    if crf:
        unary = unary_from_labels(labels, len(scores), gt_prob=LABEL.gt_prob)
        (marginals,) = solver("pydensecrf")([Problem(image, unary)], "voc_cam")
        labels = marginals.argmax(0)
    write_published(sample, out, np.array([0, *(k + 1 for k in sample.labels)])[labels])


def write_published(sample: Sample, out: Path, labels: np.ndarray) -> None:
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette().tobytes())
    picture.save(out / "masks" / f"{sample.name}.png")


def published_prediction(sample: Sample, out: Path, crf: bool) -> None:
    """Stored probabilities -> mask: pydensecrf, PNG."""
    scores = np.load(out / "cams" / f"{sample.name}.npy")
    image = np.array(Image.open(sample.image).convert("RGB"))
    present = np.unique(scores.argmax(0))
    labels = present[scores[present].argmax(0)]
    if crf:
        unary = unary_from_probabilities(scores[present])
        (marginals,) = solver("pydensecrf")([Problem(image, unary)], "voc_seg")
        labels = present[marginals.argmax(0)]
    write_published(sample, out, labels)


def published_way(work: str, crf: bool, device: str, processes: int) -> Callable[..., None]:
    """All CAMs or probabilities one after the other into files, then all masks in processes."""
    model: Any = segmenter(device) if work == "predict" else cam_model(device)
    finish = published_prediction if work == "predict" else published_label
    pool = multiprocessing.get_context("spawn").Pool(processes)  # their start is not timed

    def run(samples: list[Sample], out: Path) -> None:
        for folder in ("cams", "masks"):
            (out / folder).mkdir(parents=True)
        for sample in samples:
            image = Image.open(sample.image).convert("RGB")
            if work == "predict":
                maps = published.probabilities(model, np.array(image), PREDICT)
            else:
                maps = published_cams(model, image, sample.labels or ())
            np.save(out / "cams" / f"{sample.name}.npy", maps)
        pool.map(partial(finish, out=out, crf=crf), samples, chunksize=1)

    return run


def main(work: str, way: str, device: str, cores: str, photos: str) -> None:
    torch.set_num_threads(int(cores))
    if cores == "1" and device == "cpu" and sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # its readers and writers, too
    logging.getLogger("weaktr").setLevel(logging.ERROR)
    crf = not way.endswith("no CRF")
    run: Callable[..., Any]
    if way.startswith("published"):
        run = published_way(work, crf, device, int(cores))
    else:
        keep_freed_memory()
        run = weaktr_way(work, "bf16" if "bf16" in way else "none", crf, device)
    samples = read_samples(Path(photos))
    if work == "parts":
        run = partial(parts_of_weaktr, source=cam_source(device))
    for line in sys.stdin:
        if line.strip() == "products":
            amp = "bf16" if "bf16" in way else "none"
            model = cam_model(device)
            answer = {"gigaflops": gigaflops(model, 375, 500), "rate": product_rate(model, amp)}
            print(json.dumps(answer), flush=True)
            continue
        chosen = samples
        if line.strip() == "first" and device == "cpu":  # a GPU has kernels to choose for each size
            chosen = samples[:1]
        out = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        parts = run(chosen, out)
        seconds = time.perf_counter() - start
        if line.strip() == "first":
            shutil.rmtree(out)
            print("{}", flush=True)
            continue
        peak = resident("VmHWM") / MIB if sys.platform == "linux" else None
        answer = {"seconds": seconds, "peak": peak, "masks": str(out), "parts": parts}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
