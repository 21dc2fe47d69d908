"""``weaktr env``: which backends run on this machine, and why others do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

from rich.table import Table

from weaktr.progress import console

HELP = "Print versions, devices, which backend of each op is picked, and why another is not."
PACKAGES = ("weaktr", "torch", "torchvision", "timm", "numpy", "Pillow", "triton", "xformers")


def add_arguments(_: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(_: argparse.Namespace) -> int:
    import torch

    from weaktr.data.parallel import usable_cores
    from weaktr.ops.registry import report

    try:
        from weaktr import _native
    except ImportError:
        native = "not built"
    else:
        best, *_others = _native.isa_levels()
        native = f"{best}, bfloat16" if _native.has_bfloat16() else f"{best}, no bfloat16"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "CPU": f"{usable_cores()} cores, {torch.get_num_threads()} threads",
        "C++ code": native,
        "GPU": ", ".join(gpus) or "none",
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    table = Table("what", "value", title="environment", title_justify="left")
    for what, value in facts.items():
        table.add_row(what, value)
    console.print(table)

    columns = ("op", "backend", "runs here", "picked on", "takes, or reason")
    ops = Table(*columns, title="ops", title_justify="left")
    for status in report():
        here = "yes" if status.available else "no"
        remark = status.reason or status.refused or status.limits
        ops.add_row(status.op, status.backend, here, ", ".join(status.picked), remark)
    console.print(ops)
    return 0
