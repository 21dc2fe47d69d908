"""One small launch of every Triton kernel and variant: what compute-sanitizer is pointed at.

A program: ``compute-sanitizer --tool racecheck python -m tests.ops.short_run``. Sizes are odd, so
that blocks reach over every edge; each kernel runs with the first of its configurations and
with the last, which keeps several loads in flight.
"""

from __future__ import annotations

import sys

import torch

from weaktr.kernels import attention, common, fuse_heads, head_stats
from weaktr.kernels.clipped_cross_entropy import launches
from weaktr.ops.clipped_cross_entropy import clipped_cross_entropy as loss_of
from weaktr.ops.fuse_heads import fuse_heads as fused
from weaktr.ops.fuse_heads import fuse_heads_packed
from weaktr.ops.head_stats import head_stats as stats_of
from weaktr.ops.head_stats import head_stats_packed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, PATCHES = 5, 71
#: Of a head: in one part, and in several where it is float32.
WIDTHS = (24, 72)
PACKED = {"tokens": [9, 70, 5], "patches": [7, 65, 0]}


def attention_kernels(dtype: torch.dtype, width: int) -> list[torch.Tensor]:
    """Attention, statistics and fusion, dense and packed, with gradients."""
    q, k, v = torch.randn(3, 2, 3, CLASSES + PATCHES, width, dtype=dtype, device=DEVICE)
    attended = attention.in_one_launch(q, k, v, CLASSES, PATCHES, common.configs()[0])
    weights = torch.rand(2, 3, device=DEVICE, requires_grad=True)
    values = torch.rand(2, PATCHES, 3, device=DEVICE, requires_grad=True)
    settings = {"num_classes": CLASSES, "num_patches": PATCHES, "backend": "triton"}
    stats = [stats_of(q, k, column_means=means, **settings) for means in (True, False)]
    fine = fused(q, k, stats[0].lse, weights, values, backend="triton")

    tokens, patches = (sum(PACKED[name]) for name in ("tokens", "patches"))
    q, k = torch.randn(2, 3, tokens, width, dtype=dtype, device=DEVICE)
    packed = head_stats_packed(q, k, num_classes=2, backend="triton", **PACKED)
    weights_of = torch.rand(3, 3, device=DEVICE, requires_grad=True)
    values_of = torch.rand(patches, 2, device=DEVICE, requires_grad=True)
    fine_of = fuse_heads_packed(q, k, packed.lse, weights_of, values_of, backend="triton", **PACKED)
    (fine.sum() + fine_of.sum()).backward()
    gradients = [x.grad for x in (weights, values, weights_of, values_of)]
    outputs = (*attended, *stats[0], *packed, fine, fine_of, *gradients)
    return [x for x in outputs if x is not None]


def loss_kernels(dtype: torch.dtype) -> list[torch.Tensor]:
    """The stage-2 loss, enlarging 7.25 times, with its gradient."""
    logits = torch.randn(2, 21, 3, 4, dtype=dtype, device=DEVICE, requires_grad=True)
    labels = torch.randint(21, (2, 22, 29), dtype=torch.uint8, device=DEVICE)
    labels[:, :2] = 255
    result = loss_of(logits, labels, patch_size=8, start_value=9.0, backend="triton")
    result.loss.backward()
    assert logits.grad is not None
    return [result.loss_map, logits.grad]


#: Lists of candidates, by the modules that have them.
LISTS = (
    (common, ("CONFIGS",)),
    (head_stats, ("WIDE_CONFIGS",)),
    (fuse_heads, ("CONFIGS", "WIDE_CONFIGS", "FLOAT32_CONFIGS", "WIDE_FLOAT32_CONFIGS")),
    (fuse_heads, ("WEIGHTS_CONFIGS",)),
    (launches, ("FORWARD_CONFIGS", "BACKWARD_CONFIGS")),
)


def main() -> None:
    """All kernels; fails where a result is not finite."""
    every = {(module, name): getattr(module, name) for module, names in LISTS for name in names}
    for index in (0, -1):
        for (module, name), configs in every.items():
            setattr(module, name, (configs[index],))
        for dtype in (torch.float32, torch.bfloat16):
            results = [result for width in WIDTHS for result in attention_kernels(dtype, width)]
            assert all(result.isfinite().all() for result in (*results, *loss_kernels(dtype)))
    sys.stdout.write(f"every kernel ran on {DEVICE}\n")


if __name__ == "__main__":
    main()
