"""How long the host needs for a call of the ops with Triton kernels; no GPU is needed.

    python bench/host_times.py

For comparisons of our own code. Triton's driver is replaced by one that launches nothing: what is
left out are Triton's part of a launch and CUDA's, the change of the current device, and copies to
the device; what torch computes besides is computed here, on tensors of a few kilobytes. One thread;
the fastest of several rounds, as other work on the machine only adds time.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from triton.compiler import compiler

from tests.kernels.compile_kernels import MOST_SHARED, AbsentGPU

ROUNDS, CALLS = 150, 30
#: Maps of DeiT-S at 96x96.
MAPS, TOKENS, PATCHES, WIDTH, CLASSES, CHANNELS = 72, 56, 36, 64, 20, 2


class LaunchesNothing:
    """In the place of what Triton launches with."""

    count = 0

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        LaunchesNothing.count += 1


class IdleGPU(AbsentGPU):
    """A driver for it."""

    launcher_cls = LaunchesNothing
    utils = SimpleNamespace(load_binary=lambda *_: (1, 1, 32, 0, 1024))


def pretend() -> None:
    """Let the ops believe that there is a GPU on which they have been tuned."""
    torch.cuda.is_available = lambda: True
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.device_of = lambda _: contextlib.nullcontext()
    torch.cuda.get_device_name = lambda _: "none"
    triton.runtime.driver.set_active(IdleGPU())
    compiler.max_shared_mem = lambda _: MOST_SHARED
    from weaktr.kernels import tuning
    from weaktr.ops.registry import Backend, Triton

    Backend.is_for = lambda *_: True  # on tensors of the CPU
    Triton.device_refusal = lambda *_: ""
    # on a GPU it does not look at labels
    importlib.import_module("weaktr.ops.clipped_cross_entropy")._check = lambda *_: None
    tuning.fastest = lambda configs, _: (configs[min(1, len(configs) - 1)], True)
    tuning.write_bytes = lambda *_, **__: None  # nothing is remembered


def microseconds(call: Callable[[], object]) -> tuple[float, int]:
    """Of one call, and how many launches it makes."""
    for _ in range(CALLS):
        call()
    before, times = LaunchesNothing.count, []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return min(times), (LaunchesNothing.count - before) // (ROUNDS * CALLS)


def main() -> None:
    """A line for each op."""
    pretend()
    from weaktr.ops import (
        clipped_cross_entropy,
        fuse_heads,
        fuse_heads_packed,
        head_stats,
        head_stats_packed,
    )

    torch.set_num_threads(1)
    q, k = torch.zeros(2, 1, MAPS, TOKENS, WIDTH, dtype=torch.bfloat16)
    lse, weights = torch.zeros(1, MAPS, TOKENS), torch.zeros(1, MAPS)
    values = torch.zeros(CHANNELS, 1, PATCHES).permute(1, 2, 0)
    sizes = {"num_classes": CLASSES, "num_patches": PATCHES}
    packed = {"tokens": [TOKENS], "patches": [PATCHES]}
    chosen = {"num_classes": CLASSES, "column_means": False, "classes": [[3, 7]]}
    logits = torch.zeros(2, 21, 4, 4, requires_grad=True)
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)

    def loss() -> None:
        clipped_cross_entropy(logits, labels).loss.backward()

    calls: dict[str, Callable[[], object]] = {
        "head_stats": lambda: head_stats(q, k, **sizes),
        "head_stats, lse known": lambda: head_stats(q, k, lse=lse, **sizes),
        "fuse_heads": lambda: fuse_heads(q, k, lse, weights, values),
        "head_stats_packed, lse known": lambda: head_stats_packed(
            q[0], k[0], lse=lse[0], **packed, **chosen
        ),
        "fuse_heads_packed": lambda: fuse_heads_packed(
            q[0], k[0], lse[0], weights, values[0], **packed
        ),
        "clipped_cross_entropy, forward + backward": loss,
        "an addition of torch, for comparison": lambda: lse + 1,
    }
    for name, call in calls.items():
        context = contextlib.nullcontext() if call is loss else torch.no_grad()
        with context:
            time_of_call, launches = microseconds(call)
        print(f"{name:42} {time_of_call:6.1f} us, {launches} launches of our kernels")


if __name__ == "__main__":
    main()
