"""`dense_crf` on a GPU, by the compiled extension; elsewhere ImportError says why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from weaktr import _native
from weaktr._native import has_cuda
from weaktr.ops.dense_crf.problem import Output, Problem, as_dict

if not has_cuda():
    raise ImportError(
        "weaktr._native was built without CUDA; install weaktr where nvcc is found, or with "
        "WEAKTR_CUDA=ON to see why it is not"
    )
if not torch.cuda.is_available():
    raise ImportError("torch sees no GPU")

#: Images that need more than this share of the device's memory together go one part after another.
MEMORY_SHARE = 0.25


def dense_crf_cuda(
    problems: Sequence[Problem],
    *,
    iterations: int,
    num_threads: int = 1,
    output: Output = "marginals",
) -> list[tuple[Tensor, ...]]:
    """`weaktr.ops.dense_crf` on a GPU; arguments and results like `dense_crf_torch`.

    Images go through the device together, on its current stream and without waiting for it; memory
    comes from torch's allocator. Results are the same bits in every run, whatever other images
    there are.

    Args:
        problems: checked, on one GPU: images (H, W) with kernels of positions and colours.
        iterations: mean-field steps.
        num_threads: not used.
        output: what to return for each problem.

    Raises:
        ValueError: not on a GPU; features; an image so large, or deviations so small, that the
            lattice's vertices need more than 63 bits.
        RuntimeError: CUDA reports an error; there is not enough memory for an image.
    """
    if not problems:
        return []
    device = problems[0].device
    if device.type != "cuda":
        raise ValueError(f"unary: expected on a GPU, got {device}; use .cuda() or backend 'cpu'")
    outputs = [_empty_outputs(problem, output) for problem in problems]
    _solve(problems, outputs, iterations)
    return [tuple(maps.values()) for maps in outputs]


def _solve(
    problems: Sequence[Problem],
    outputs: Sequence[dict[str, Tensor]],
    iterations: int,
) -> None:
    """Fill `outputs`. What is freed here is used again only after what is enqueued here."""
    device = problems[0].device
    copies: list[Tensor] = []

    def memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
        """Address and shape; `copies` keeps what had to be made contiguous."""
        copies.append(tensor.contiguous())
        return copies[-1].data_ptr(), tuple(tensor.shape)

    dicts = [
        as_dict(problem, memory) | {name: memory(part) for name, part in maps.items()}
        for problem, maps in zip(problems, outputs, strict=True)
    ]
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        limit = int(MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)
        sizes = _native.dense_crf_cuda_bytes(dicts)
        for part in _parts(sizes, limit):
            workspace: list[Tensor] = []
            allocate = partial(_allocate, device, workspace)
            _native.dense_crf_cuda(dicts[part], iterations, stream, allocate)


def _allocate(device: torch.device, workspace: list[Tensor], size: int) -> int:
    """The address of `size` bytes, which `workspace` keeps."""
    workspace.append(torch.empty(size, dtype=torch.uint8, device=device))
    return workspace[-1].data_ptr()


def _parts(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Cut a list where the sum of its sizes would pass the limit; no part is empty."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def _empty_outputs(problem: Problem, output: Output) -> dict[str, Tensor]:
    """Where the results go, in the order in which they are returned."""
    shape = problem.shape
    floats = partial(torch.empty, dtype=torch.float32, device=problem.device)
    if output == "marginals":
        return {"marginals": floats((problem.num_labels, *shape))}
    maps = {"argmax": torch.empty(shape, dtype=torch.uint8, device=problem.device)}
    if output == "labels+confidence":
        maps["confidence"] = floats(shape)
    return maps
