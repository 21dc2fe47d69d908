"""The precision and the device that a model runs in and on.

Without autocast a model computes in float32, on a GPU too: TF32, which keeps 10 of its 23 bits, is
taken in matrix products, convolutions and our own kernels alike, and only where a setting says
"tf32" (`tf32_of`) or the program has asked for it by `torch.set_float32_matmul_precision`.

"auto" and "fast" mean one thing in trainings (`training_amp`), where bf16 needs no scaling of
gradients, and another in labelling and prediction, where fp16 rounds to an eighth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from weaktr.config import Amp

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: The compute capability from which on a GPU multiplies bfloat16.
_BF16_CAPABILITY = (8, 0)


def amp_type(amp: Amp, device: torch.device) -> torch.dtype | None:
    """The autocast type of a setting, None = no autocast; "auto" = fp16 on CUDA alone."""
    return _AMP_TYPES.get(inference_amp("fp16_on_cuda" if amp == "auto" else amp, device))


@contextmanager
def autocast(amp: Amp, device: torch.device) -> Iterator[None]:
    """Compute below as a setting says: autocast (see `amp_type`), or in TF32 (see `tf32_of`)."""
    dtype = amp_type(amp, device)
    with tf32_of(amp, device), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


@contextmanager
def tf32_of(amp: Amp, device: torch.device) -> Iterator[None]:
    """Have products and convolutions below take TF32 if `amp` is "tf32", on CUDA.

    The switches are the whole process's; afterwards they are as before.
    """
    products, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)  # lacks `conv`
    off: list[Any] = []
    if amp == "tf32" and device.type == "cuda":
        parts = (products, products), (cudnn, cudnn.conv)
        off = [switch for switch, part in parts if part.fp32_precision != "tf32"]
    for switch in off:
        switch.allow_tf32 = True
    try:
        yield
    finally:
        for switch in off:
            switch.allow_tf32 = False


def training_amp(amp: Amp, device: torch.device) -> Amp:
    """What `amp` means in a training: "none", "tf32", "bf16" or "fp16".

    "auto" = bf16 on CUDA, fp16 on GPUs without bf16 in hardware, none elsewhere; "fast" = the same,
    and bf16 on CPUs that multiply it in hardware.
    """
    if amp in ("auto", "fast") and device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
        return "bf16" if has_bf16 else "fp16"
    return "none" if amp == "auto" else inference_amp(amp, device)


def inference_amp(amp: Amp, device: torch.device) -> Amp:
    """`amp`, where "auto" means "fast": fp16 on CUDA, bf16 on CPUs that multiply it in hardware.

    Returns:
        "none", "tf32", "bf16" or "fp16".
    """
    if amp not in ("auto", "fast", "fp16_on_cuda"):
        return amp
    if device.type == "cuda":
        return "fp16"
    cpu: Any = torch.cpu  # no public name tells what the CPU has in every version
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has_bf16 = any(getattr(cpu, name)() for name in names if hasattr(cpu, name))
    return "bf16" if amp != "fp16_on_cuda" and device.type == "cpu" and has_bf16 else "none"


def keep_float32_in_convolutions() -> None:
    """Have cuDNN's convolutions take TF32, as by default, only where matrix products may."""
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        torch.backends.cudnn.allow_tf32 = False


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" = CUDA if there is one, else the CPU.

    Of several processes of a machine, which torchrun or srun has numbered, "auto" gives each
    another GPU.

    A GPU with a number becomes this thread's current one: kernels are launched on it and events
    recorded on it by default, whatever tensors they belong to. Where there is a GPU, float32 is
    kept (`keep_float32_in_convolutions`).

    Raises:
        ValueError: there is no such device here.
    """
    if torch.cuda.is_available():
        keep_float32_in_convolutions()
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or ""
        if not local.isdecimal() or torch.cuda.device_count() < 2:
            return torch.device("cuda")
        name = f"cuda:{int(local) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"device: {name!r} cannot be used here (expected auto, cpu, or cuda or cuda:0 with a "
            f"GPU): {reason:.200}"
        ) from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
