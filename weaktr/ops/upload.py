"""Tensors from the host to a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, for which the host does not wait: a GPU gets it from pinned memory."""
    if device.type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def upload_table(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    """int64 [len(rows), width] on the device; not to be written to.

    The same rows, asked for again soon on the same stream, are not uploaded again.
    """
    stream = 0
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
    content = tuple(map(tuple, rows))
    if torch.compiler.is_compiling() or (stream and torch.cuda.is_current_stream_capturing()):
        return _table(content, width, device)  # such a tensor is not for others
    return _kept_table(content, width, device, stream)


@lru_cache(maxsize=32)
def _kept_table(
    rows: tuple[tuple[int, ...], ...], width: int, device: torch.device, stream: int
) -> Tensor:
    with torch.inference_mode(False):
        return _table(rows, width, device)


def _table(rows: tuple[tuple[int, ...], ...], width: int, device: torch.device) -> Tensor:
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")
    return upload(table.view(len(rows), width), device)
