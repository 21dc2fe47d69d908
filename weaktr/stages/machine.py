"""The machine and the versions with which results were made."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path

import torch

from weaktr.data.parallel import usable_cores

#: Packages on whose versions results may depend.
PACKAGES = ("weaktr", "torch", "timm", "numpy", "Pillow")


def machine_facts(device: torch.device) -> dict[str, str]:
    """What computed: the GPU where `device` is one, the CPU, Python and the packages, in words."""
    facts = {"GPU": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    parts = (cpu_name(), f"{usable_cores()} cores", f"{torch.get_num_threads()} threads")
    facts["CPU"] = ", ".join(part for part in parts if part)
    facts["Python"] = f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts


def cpu_name() -> str:
    """The CPU's name, as far as the system tells it."""
    with suppress(OSError):  # Linux
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
