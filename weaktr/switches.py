"""What a program has told torch, set aside while we compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


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
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if device is not None and device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.default_stream(device)))
        elif torch.cuda.is_initialized():
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        yield
