"""The work of `bench_dense_crf.py`: photographs, settings, and one call of each implementation.

As a program: peak memory of one implementation, in a process of its own, so that nothing that
others left behind is counted or hides what it needs.

    python bench/crf_work.py pydensecrf voc_cam 4 voc_seg 21     # MiB, one line per pair
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from weaktr.data.sources.scene_drawing import render_scene
from weaktr.ops import unary_from_probabilities
from weaktr.ops.dense_crf import dense_crf, release_memory
from weaktr.ops.dense_crf.presets import PRESETS

HEIGHT, WIDTH = 375, 500
#: Where photographs may lie, beside the checkout: the first 128 of COCO train2017.
COCO128 = Path(__file__).parents[2] / "shared" / "data" / "coco128" / "images"
#: A size of position lattice, and how many of them the definition keeps.
SMALL, KEPT = 8, 4


class Problem(NamedTuple):
    """One image to solve."""

    image: NDArray[np.uint8]  #: [H, W, 3]
    unary: NDArray[np.float32]  #: [L, H, W], energies in nats


#: Marginals of problems under a preset.
Solve = Callable[[Sequence[Problem], str], list[NDArray[np.float32]]]


def photographs(count: int) -> tuple[str, list[NDArray[np.uint8]]]:
    """`count` pictures of 500 x 375, and what they are.

    "coco128": photographs, cut from the middle; where there are none "scenes", which are drawn.
    """
    pictures = []
    for path in sorted(COCO128.glob("*.jpg")):
        image = Image.open(path)
        left, top = (image.width - WIDTH) // 2, (image.height - HEIGHT) // 2
        if left >= 0 and top >= 0 and len(pictures) < count:
            cut = image.convert("RGB").crop((left, top, left + WIDTH, top + HEIGHT))
            pictures.append(np.array(cut))
    if len(pictures) == count:
        return "coco128", pictures
    scenes = [render_scene(i, size=WIDTH, seed=0, split="bench")[0] for i in range(count)]
    return "scenes", [np.ascontiguousarray(scene[:HEIGHT]) for scene in scenes]


def smooth_problem(image: NDArray[np.uint8], num_labels: int, seed: int) -> Problem:
    """`image` with the energies of random probabilities that change slowly."""
    height, width, _ = image.shape
    coarse = np.random.default_rng(seed).normal(0, 2, (num_labels, 12, 16)).astype(np.float32)
    maps = [
        Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse
    ]
    probs = torch.from_numpy(np.stack([np.asarray(one) for one in maps])).softmax(0)
    return Problem(image, np.ascontiguousarray(unary_from_probabilities(probs.numpy())))


def solver(name: str) -> Solve:
    """The implementation of a row: "pydensecrf", or a backend and its threads, such as "cpu x2".

    Raises:
        ImportError: it is not installed.
    """
    if name == "pydensecrf":
        module = importlib.import_module("pydensecrf.densecrf")
        return lambda problems, preset: [_pydensecrf(module, one, preset) for one in problems]
    backend, _, threads = name.partition(" x")
    if backend == "cpu":
        importlib.import_module("weaktr.ops.dense_crf.cpu")

    def solve(problems: Sequence[Problem], preset: str) -> list[NDArray[np.float32]]:
        settings = PRESETS[preset]
        return dense_crf(
            [one.image for one in problems],
            [one.unary for one in problems],
            gaussian=settings.gaussian,
            bilateral=settings.bilateral,
            iterations=settings.iterations,
            num_threads=int(threads or 1),
            backend=backend,
        )

    return solve


def _pydensecrf(module, problem: Problem, preset: str) -> NDArray[np.float32]:
    settings = PRESETS[preset]
    num_labels, height, width = problem.unary.shape
    crf = module.DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(problem.unary.reshape(num_labels, -1))
    crf.addPairwiseGaussian(sxy=settings.gaussian[0], compat=settings.gaussian[1])
    sxy, srgb, compat = settings.bilateral
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=problem.image, compat=compat)
    return np.array(crf.inference(settings.iterations)).reshape(problem.unary.shape)


def forget_positions(solve: Solve, preset: str, num_labels: int) -> None:
    """Solve images of other sizes, so that the lattice of positions has to be built again."""
    for more in range(KEPT + 1):
        image = np.zeros((SMALL, SMALL + more, 3), np.uint8)
        solve([Problem(image, np.zeros((num_labels, *image.shape[:2]), np.float32))], preset)


# ---- peak memory --------------------------------------------------------------------------------


def peaks(name: str, cells: Sequence[tuple[str, int]]) -> list[float | None]:
    """MiB that `solver(name)` needs at its peak for each (preset, labels); None: not known here."""
    arguments = [str(part) for cell in cells for part in cell]
    command = [sys.executable, __file__, name, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) if line else None for line in process.stdout.splitlines()]


def main(name: str, *arguments: str) -> None:
    from conftest import peak_mib

    torch.set_num_threads(1)
    solve = solver(name)
    _, (image,) = photographs(1)
    for preset, num_labels in zip(arguments[::2], map(int, arguments[1::2]), strict=True):
        forget_positions(solve, preset, num_labels)
        release_memory()
        problem = smooth_problem(image, num_labels, seed=0)
        _, peak = peak_mib(lambda given=[problem], preset=preset: solve(given, preset))
        print("" if peak is None else peak)


if __name__ == "__main__":
    main(*sys.argv[1:])
