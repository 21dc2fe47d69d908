"""The least time that a piece of work can take on this GPU: what its rows are measured against.

    floor = max(FLOP / matrix throughput, exponentials / throughput, bytes / bandwidth)

Matrix throughput and bandwidth are measured here, with torch's own products and copies; nothing
says how many exponentials a second there are but the architecture: 16 a clock and multiprocessor.
"""

from __future__ import annotations

import subprocess
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

EXPONENTIALS_PER_CLOCK = 16
SIDE = 8192
REPEATS = 10


class Work(NamedTuple):
    """What has to be done at least; an exponential for each entry of a softmax."""

    flops: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0


def floor_seconds(work: Work, dtype: torch.dtype) -> float | None:
    """The floor of `work`, its products in `dtype`; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return max(
        work.flops / matrix_throughput(dtype),
        work.exponentials / exponential_throughput(),
        work.bytes / bandwidth(),
    )


@cache
def matrix_throughput(dtype: torch.dtype) -> float:
    """FLOP a second of a large product, float32 with or without tf32 as torch is set."""
    a, b = torch.randn(2, SIDE, SIDE, device="cuda", dtype=dtype)
    return 2 * SIDE**3 / _seconds(lambda: a @ b)


@cache
def bandwidth() -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source))


@cache
def exponential_throughput() -> float:
    """Exponentials a second at the highest clock."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    megahertz = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    count = torch.cuda.get_device_properties(0).multi_processor_count
    return EXPONENTIALS_PER_CLOCK * count * float(megahertz) * 1e6


def _seconds(run) -> float:
    """Of one of several runs in a row, by the device's clock."""
    run()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000 / REPEATS


# ---- pieces of work -----------------------------------------------------------------------------


def fusion_work(q: Tensor, classes: int, patches: int, channels: int) -> Work:
    """Row sums, class rows and fused map of q, k [B, M, N, d], each entry computed once."""
    batch, maps, tokens, dim = q.shape
    entries = batch * maps * (tokens**2 + classes * patches + patches**2)
    numbers = 2 * q.numel() * q.element_size() + 4 * batch * maps * classes * patches
    return Work(2 * dim * entries + 2 * batch * patches**2 * channels, entries, numbers)


def training_work(model: torch.nn.Module, images: Tensor) -> Work:
    """Products of a backbone's forward and, twice as many, backward pass; statistics are extra."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return Work(flops=3 * counter.get_total_flops())


def loss_work(logits: Tensor, labels: Tensor) -> Work:
    """An exponential for each label of each pixel, forwards and backwards; the loss map written."""
    pixels = labels.numel()
    return Work(
        exponentials=2 * pixels * logits.shape[1],
        bytes=2 * logits.numel() * logits.element_size() + 2 * pixels * (labels.element_size() + 8),
    )
