"""Compiles kernels for a GPU that need not be here: every launch is prepared, none happens.

A program, because Triton decides at import whether it interprets: run it with
``python -m tests.kernels.compile_kernels``; it prints the names of the kernels.
"""

from __future__ import annotations

import functools
import sys
from itertools import product
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class AbsentGPU:
    """What `JITFunction.warmup` asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_only(compiled: set[str]) -> None:
    """Make launches end after compilation, and remember the names of the kernels."""
    torch.cuda.is_available = lambda: True
    triton.runtime.driver.set_active(AbsentGPU())
    run = JITFunction.run

    def prepare(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        assert kernel.asm["cubin"]
        compiled.add(self.fn.__name__)
        return kernel

    JITFunction.run = functools.wraps(run)(prepare)


def attention_kernels(dtype: torch.dtype, dim: int) -> None:
    """Every variant of the kernels on attention maps, with their first configuration."""
    from weaktr.kernels import attention, common
    from weaktr.kernels.fuse_heads import FuseHeadsInputs, fuse_heads_triton
    from weaktr.kernels.head_stats import HeadStatsInputs, head_stats_triton

    for name in ("CONFIGS",):
        setattr(common, name, getattr(common, name)[:1])
    q, k, v = torch.zeros(3, 1, 2, 40, dim, dtype=dtype)
    attention.in_one_launch(q, k, v, 3, 37, common.configs_of(q)[0])
    layouts = ((), ([40], [37]))
    for column_means, layout in product((True, False), layouts):
        head_stats_triton(HeadStatsInputs(q, k, None, 3, 37, 0.1, column_means, *layout))
    rows = torch.zeros(1, 2, dtype=torch.int64)
    head_stats_triton(HeadStatsInputs(q, k, None, 3, 37, 0.1, False, *layouts[1], rows))
    lse, weights, values = torch.zeros(1, 2, 40), torch.zeros(1, 2), torch.zeros(1, 37, 5)
    for layout in layouts:
        tensors = [t.requires_grad_() for t in (weights, values)]
        fine = fuse_heads_triton(FuseHeadsInputs(q, k, lse, *tensors, 0.1, *layout))
        fine.sum().backward()


def loss_kernels(dtype: torch.dtype, num_labels: int) -> None:
    """The kernels of the stage-2 loss, with their first configuration."""
    from weaktr.kernels import clipped_cross_entropy as loss

    for name in ("FORWARD_CONFIGS", "BACKWARD_CONFIGS"):
        setattr(loss, name, getattr(loss, name)[:1])
    logits = torch.zeros(1, num_labels, 3, 3, dtype=dtype, requires_grad=True)
    losses, _ = loss.pixel_losses(logits, torch.zeros(1, 48, 48, dtype=torch.uint8), 255)
    losses.sum().backward()


if __name__ == "__main__":
    names: set[str] = set()
    compile_only(names)
    attention_kernels(torch.bfloat16, 64)
    attention_kernels(torch.float32, 24)
    loss_kernels(torch.bfloat16, 91)
    loss_kernels(torch.float32, 21)
    sys.stdout.write(" ".join(sorted(names)) + "\n")
