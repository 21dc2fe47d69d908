"""What a program has told torch, set aside while we compute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


class _DefaultType:
    """float32 as torch's default type, which is the whole process's: until the last thread leaves.

    Attributes:
        inside: threads that compute by it.
        before: the type of the program around the first of them.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.inside += 1

    def __exit__(self, *details: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_default_dtype(self.before)


_float32 = _DefaultType()


@contextmanager
def own_switches(device: torch.device | None = None) -> Iterator[None]:
    """Compute below by our own settings alone.

    Off are autocast, inference mode, the default type and the default device of the program around
    us. They come back afterwards, and so do its current GPU and stream.

    Args:
        device: where is computed; a GPU is the current one below, with the stream that all our work
            goes to: what is kept of one call is used in others.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Weights that ours casts are otherwise kept until theirs ends, however they change.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        torch.clear_autocast_cache()
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_float32)
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if device is not None and device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.default_stream(device)))
        elif torch.cuda.is_initialized():
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        else:
            stack.callback(_first_gpu_again)
        yield


def _first_gpu_again() -> None:
    """The GPU that is current until somebody chooses one."""
    if torch.cuda.is_initialized():
        torch.cuda.set_device(0)
