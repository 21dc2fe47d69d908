"""Where the time of `dense_crf` on a GPU goes: kernels of one batch, the slowest first.

python bench/kernel_times.py [PRESET LABELS|mixed IMAGES [smooth|textured|photographs]]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))

from bench_dense_crf_cuda import ITERATIONS, problems

from weaktr.ops.dense_crf.cuda import dense_crf_cuda

DATA = Path(__file__).parents[1] / "tests" / "golden"


def main(
    preset: str = "voc_cam", num_labels: str = "4", count: str = "64", pictures: str = "smooth"
) -> None:
    labels = num_labels if num_labels == "mixed" else int(num_labels)
    batch = problems(DATA, preset, labels, int(count), pictures)
    dense_crf_cuda(batch, iterations=ITERATIONS)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        dense_crf_cuda(batch, iterations=ITERATIONS)
        torch.cuda.synchronize()
    print(f"{preset} L{num_labels}, {count} images")
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total]
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total):
        name = re.sub(r"weaktr::|\(anonymous namespace\)::|blocks::|void ", "", event.key)
        milliseconds = event.self_device_time_total / 1000
        print(f"  {milliseconds:9.3f} ms  {event.count:4d} times  {name[:70]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
