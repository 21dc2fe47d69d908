"""`dense_crf` on a GPU: batches of photographs, beside the C++ code on all cores of the host.

The pictures are parts of one that is "smooth", the same "textured" by noise, or "photographs" of
COCO at their own sizes, where they are (see `crf_work.COCO128`).
"""

import importlib

import numpy as np
import pytest
import torch
from crf_work import COCO128
from PIL import Image

from weaktr.data.parallel import usable_cores
from weaktr.ops import unary_from_probabilities
from weaktr.ops.dense_crf.definition import dense_crf_torch
from weaktr.ops.dense_crf.permutohedral import build_lattice
from weaktr.ops.dense_crf.presets import PRESETS
from weaktr.ops.dense_crf.problem import Pairwise, Problem, divided, grid_positions, image_features
from weaktr.ops.registry import report

#: How many photographs of 64 have so many labels, the background and the classes that they show,
#: as in the first 126 of COCO's train2017 with annotations; labelling solves such a batch.
OF_COCO = {2: 13, 3: 22, 4: 10, 5: 10, 6: 3, 7: 3, 8: 2, 12: 1}
#: preset, labels of each ("mixed": `OF_COCO`), images, pictures
WORK = [
    ("voc_cam", 4, 1, "smooth"),
    ("voc_cam", 4, 64, "smooth"),
    ("coco_cam", 4, 64, "textured"),
    ("coco_cam", 4, 64, "photographs"),
    ("coco_cam", "mixed", 64, "photographs"),
    ("voc_seg", 21, 64, "textured"),
    ("voc_seg", 21, 64, "photographs"),
    ("coco_seg", 81, 16, "photographs"),
]
#: Of the noise that makes a picture textured: 153 thousand vertices under coco_cam, as many as the
#: photographs of COCO have on average; without it 86 thousand.
AMPLITUDE = 6.0
#: The definition takes one image after the other, so that one tells its speed.
ROWS = [
    (row, *work)
    for work in WORK
    for row in ("cuda", "cpu, all cores", "torch")
    if row != "torch" or work[2] == 1
]
ITERATIONS = 10
#: All values but a `FEW` are within the bound; where two labels are balanced to the last bits, mean
#: field enlarges what rounding leaves.
WITHIN, FEW, AT_MOST = 1e-4, 1e-5, 1e-2
#: Images of a batch whose results are compared with the C++ code's; of a mixed one these have all
#: numbers of labels.
CHECKED = 8
#: Per entry (a pixel's corner): weight and run in the slice, place in the order of the splat.
ENTRY_BYTES = 4 + 2 + 2
#: Per vertex and axis: its neighbours.
NEIGHBOURS_BYTES = 8
#: Times per iteration that a vertex's values are moved, besides the blur: splat (written by a tile,
#: read again), slice; as if every vertex were touched by one tile.
MOVES = 3


def textured(image):
    """A picture uint8 [H, W, 3] with noise of three scales."""
    rng = np.random.default_rng(0)
    result = torch.from_numpy(image.astype(np.float32))
    for cells in (8, 32, 125):
        noise = torch.from_numpy(rng.standard_normal((1, 3, cells, cells)).astype(np.float32))
        large = torch.nn.functional.interpolate(noise, image.shape[:2], mode="bicubic")[0]
        result += AMPLITUDE * large.permute(1, 2, 0)
    return result.clamp(0, 255).byte().numpy()


def pictures_of(data, count, pictures):
    """uint8 [H, W, 3] each; parts are of sizes around 500 x 375, mirrored and not."""
    if pictures == "photographs":
        paths = sorted(COCO128.glob("*.jpg"))
        for number in range(count):
            photograph = Image.open(paths[number % len(paths)]).convert("RGB")
            yield torch.from_numpy(np.array(photograph))
        return
    whole = np.load(data / "crf" / "large_b_coco_cam_L3.npz")["image"]
    whole = textured(whole) if pictures == "textured" else whole
    rng = np.random.default_rng(0)
    for i in range(count):
        part = whole if i == 0 else whole[rng.integers(0, 40) :, rng.integers(0, 50) :]
        yield torch.from_numpy(part[:, :: 1 - 2 * (i % 2)].copy())


def smooth_energies(shape, num_labels, seed):
    """Of random probabilities that change slowly: float32 [L, H, W] on the GPU."""
    coarse = torch.randn(1, num_labels, 12, 16, generator=torch.Generator().manual_seed(seed)) * 2
    scores = torch.nn.functional.interpolate(coarse.cuda(), shape, mode="bicubic")[0]
    return unary_from_probabilities(scores.softmax(0))


def labels_of(num_labels, count):
    """How many labels each of `count` images has."""
    if num_labels != "mixed":
        return [num_labels] * count
    others = [labels for labels, images in OF_COCO.items() for _ in range(images - 1)]
    mixed = [*OF_COCO, *np.random.default_rng(0).permutation(others).tolist()]
    return [mixed[i % len(mixed)] for i in range(count)]


def kernels_of(preset, num_labels):
    """The two kernels of a preset."""
    settings = PRESETS[preset]
    gaussian, bilateral = settings.gaussian, settings.bilateral
    deviations = [(gaussian[0],) * 2, (bilateral[0],) * 2 + (bilateral[1],) * 3]
    return [
        Pairwise(
            tuple(map(float, sides)), None, torch.full((num_labels,), -float(weight)), "symmetric"
        )
        for sides, weight in zip(deviations, (gaussian[-1], bilateral[-1]), strict=True)
    ]


def problems(data, preset, num_labels, count, pictures="smooth"):
    """On the GPU, see `WORK`."""
    pairs = zip(pictures_of(data, count, pictures), labels_of(num_labels, count), strict=True)
    return [
        Problem(
            image.shape[:2],
            image.cuda(),
            smooth_energies(image.shape[:2], own, i),
            kernels_of(preset, own),
        )
        for i, (image, own) in enumerate(pairs)
    ]


def least_bytes(problem):
    """That one image's iterations move between the GPU's memory and its multiprocessors."""
    num_labels, height, width = problem.unary.shape
    total = 4 * num_labels * height * width
    for kernel in problem.kernels:
        if len(kernel.deviations) == 2:
            positions = grid_positions((height, width), problem.device)
            features = divided(positions, kernel.deviations)
        else:
            features = image_features(problem.image, kernel.deviations)
        vertices, axes = len(build_lattice(features).splat_starts), len(kernel.deviations) + 1
        row = 16 * -(-num_labels // 4)
        total += ENTRY_BYTES * axes * height * width
        total += vertices * (row * (MOVES + 2 * axes) + NEIGHBOURS_BYTES * axes)
    return ITERATIONS * total


def bytes_per_second():
    """Of a copy within the GPU's memory, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 10 * 2 * source.numel() / (start.elapsed_time(end) * 1e-3)


def share_beyond(actual, expected):
    """Share of all values that differ by more than `WITHIN`."""
    pairs = [(got.cpu(), wanted) for got, wanted in zip(actual, expected, strict=True)]
    count = sum(int(((got - wanted).abs() > WITHIN).sum()) for got, wanted in pairs)
    return count / sum(wanted.numel() for _, wanted in pairs)


def on_cpu(problem):
    """The same problem in the host's memory."""
    return problem._replace(image=problem.image.cpu(), unary=problem.unary.cpu())


@pytest.mark.parametrize(("row", "preset", "num_labels", "count", "pictures"), ROWS)
def bench_dense_crf_cuda(measure, benchmark, data, row, preset, num_labels, count, pictures):
    (status,) = (s for s in report() if (s.op, s.backend) == ("dense_crf", "cuda"))
    if not status.available:
        pytest.skip(status.reason)
    if pictures == "photographs" and not COCO128.is_dir():
        pytest.skip(f"there are no photographs in {COCO128}")
    on_gpu = importlib.import_module("weaktr.ops.dense_crf.cuda").dense_crf_cuda
    in_cpp = importlib.import_module("weaktr.ops.dense_crf.cpu").dense_crf_cpu
    batch = problems(data, preset, num_labels, count, pictures)
    arguments = {"iterations": ITERATIONS, "num_threads": usable_cores(), "output": "marginals"}
    on_host = list(map(on_cpu, batch))
    way, given = {
        "cuda": (on_gpu, batch),
        "cpu, all cores": (in_cpp, on_host),
        "torch": (dense_crf_torch, batch),
    }[row]
    expected = [marginals for (marginals,) in in_cpp(on_host[:CHECKED], **arguments)]

    def call():
        return [marginals for (marginals,) in way(given, **arguments)][:CHECKED]

    beyond = share_beyond(call(), expected)
    floor = sum(map(least_bytes, batch)) / count / bytes_per_second()
    measure(
        call,
        group=f"dense_crf {preset}, {count} of L{num_labels}, {pictures}",
        row=row,
        baseline=row.startswith("cpu"),
        expected=expected,
        within=AT_MOST,
        beyond=beyond,
        items=count,
        iterations=ITERATIONS,
        dtype="float32",
        megapixels=sum(problem.image[..., 0].numel() for problem in batch) / 1e6,
        floor_ms=1e3 * floor,
    )
    assert beyond <= FEW
    if benchmark.stats is not None:  # None: --benchmark-disable
        benchmark.extra_info["share_of_floor"] = floor / (benchmark.stats.stats.median / count)
