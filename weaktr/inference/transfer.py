"""Images to the device and results back, without host and device waiting for each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pinned(pixels: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of these pixels; for a GPU in pinned memory, so that `upload` need not wait."""
    tensor = torch.from_numpy(pixels)
    if device.type != "cuda":
        return tensor
    with torch.cuda.device(device):  # a reader's current one may be another
        return tensor.pin_memory()


class Download:
    """Maps on their way from the device, those of a dtype in one copy; `arrays` waits for them.

    Args:
        maps: of any shapes and dtypes, on one device.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self._maps = list(maps)
        self._event: torch.cuda.Event | None = None
        if any(one.is_cuda for one in maps):
            for dtype in {one.dtype for one in maps}:
                self._copy([i for i, one in enumerate(maps) if one.dtype == dtype])
            self._event = torch.cuda.Event(blocking=True)  # else who waits keeps a core busy
            self._event.record(torch.cuda.current_stream(maps[0].device))

    def _copy(self, indices: Sequence[int]) -> None:
        """Start the copy of some maps of one dtype."""
        maps = [self._maps[index] for index in indices]
        flat = torch.cat([one.flatten() for one in maps])
        host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
        host.copy_(flat, non_blocking=True)
        parts = host.split([one.numel() for one in maps])
        for index, part, one in zip(indices, parts, maps, strict=True):
            self._maps[index] = part.view(one.shape)

    def nbytes_of(self, first: int, count: int) -> int:
        """Bytes of some of the maps."""
        return sum(one.nbytes for one in self._maps[first : first + count])

    def arrays(self) -> list[np.ndarray]:
        """The maps on the host; waits until they are there, from any thread."""
        if self._event is not None:
            self._event.synchronize()
        return [one.numpy() for one in self._maps]
