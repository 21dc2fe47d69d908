"""The work of `bench_cam.py`: a training step and the CAMs of an image, in every way.

As a program: one way in a process of its own, so that no way finds memory that another one left.
It answers each line of standard input with a line of JSON.

    python bench/cam_work.py training weaktr cpu 8 224 224
    first      run once to warm up and once more: {"result": FILE.pt, "peak": MIB}
    again      run once more: {"seconds": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import torch
from conftest import peak_mib, synchronize
from torch import Tensor
from torch.nn.functional import multilabel_soft_margin_loss

from weaktr.cli.memory import keep_freed_memory
from weaktr.config import CamModelConfig
from weaktr.models import CamModel
from weaktr.models.precision import autocast
from weaktr.ops.registry import ENVIRONMENT_VARIABLE

BACKBONE = "deit_small_patch16_224"
CLASSES = 20
#: Ends the name of a way whose process keeps what it frees, as ours does; the published code does
#: not.
KEPT = ", memory kept"


class Process:
    """One way in a process of its own, which waits until it is asked.

    Args:
        program: such as this file.
        arguments: of its `main`.
    """

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, program, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str) -> dict[str, Any]:
        """The program's answer to a line, such as "first" or "again"."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


def model_and_images(
    device: str, batch: int, height: int, width: int
) -> tuple[CamModel, Tensor, Tensor]:
    torch.manual_seed(0)
    config = CamModelConfig(BACKBONE, weights=None, drop_path=0.0)
    model = CamModel(config, CLASSES).to(device)
    images = torch.randn(batch, 3, height, width, device=device)
    labels = torch.zeros(batch, CLASSES, device=device)
    labels[:, [3, 14]] = 1
    return model, images, labels


def training_step(way: str, *sizes: Any) -> Callable[[], Tensor]:
    """Forward and backward pass of "weaktr", "weaktr bf16" or "published"; returns the loss."""
    model, images, labels = model_and_images(*sizes)

    def forward() -> Any:
        if way == "published":
            return published.cam_forward(model, images)
        with autocast("bf16" if way == "weaktr bf16" else "none", images.device):
            return model(images)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        losses = [multilabel_soft_margin_loss(logits.float(), labels) for logits in forward()]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach()

    return step


def cams(way: str, *sizes: Any) -> Callable[[], Tensor]:
    """CAMs by "weaktr", "torch" (the plain definitions of all ops) or "published"."""
    model, images, labels = model_and_images(*sizes)
    model.eval()
    if way == "torch":
        os.environ[ENVIRONMENT_VARIABLE] = "torch"
    if way == "published":
        return lambda: published.cams(model, images, labels)
    return lambda: model.cams(images, labels)


def main(work: str, way: str, device: str, *sizes: str) -> None:
    if way.endswith(KEPT) or not way.startswith("published"):
        keep_freed_memory()
    make = training_step if work == "training" else cams
    call = make(way.removesuffix(KEPT), device, *map(int, sizes))
    for line in sys.stdin:
        if line.strip() == "first":
            call()
            result, peak = peak_mib(call)
            file, name = tempfile.mkstemp(suffix=".pt")
            os.close(file)
            torch.save(result.cpu(), name)
            answer: dict[str, Any] = {"result": name, "peak": peak}
        else:
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


def taken(answer: dict[str, Any]) -> Tensor:
    """The result of the answer to "first"; its file goes."""
    result: Tensor = torch.load(answer["result"], weights_only=True)
    Path(answer["result"]).unlink()
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
