"""`clipped_cross_entropy` against the published code and against loops over tiles."""

import importlib
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tolerances import assert_close
from weaktr import processes
from weaktr.ops import clipped_cross_entropy
from weaktr.ops.clipped_cross_entropy import tiles as cpu
from weaktr.ops.clipped_cross_entropy.definition import (
    clip_losses,
    of_pixels,
    pixel_losses,
    sums_of_tiles,
)

OP = "clipped_cross_entropy"
#: case -> (mean loss, final loss where clipping is active) of the published code
SCALARS = {
    "s1": (1.4258992671966553, 0.9438855051994324),
    "s2": (1.4665935039520264, 0.980622410774231),
    "p480": (1.322197675704956, 0.9914790987968445),
}
#: Whether Triton's kernels run on the CPU, a thousand times slower than compiled.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
STARTS = [1.2, 1000.0]  # off: the mean loss is above 1.2; on


@pytest.fixture(autouse=True)
def _where_the_backend_runs(request):
    """Skips what is not a case: Triton's kernels on the CPU, unless interpreted."""
    values = {
        name: request.getfixturevalue(name)
        for name in ("backend", "device")
        if name in request.fixturenames
    }
    if values == {"backend": "triton", "device": "cpu"} and not INTERPRETED:
        pytest.skip("triton: not interpreted, so it takes CUDA tensors alone")


@pytest.fixture(autouse=True)
def _large_programs(request, monkeypatch):
    """Interpreted, all pixels of a program take as long as one: few programs, of many pixels.

    How programs share the work is looked at in `test_clipped_cross_entropy_triton`.
    """
    names = request.fixturenames
    if INTERPRETED and "backend" in names and request.getfixturevalue("backend") == "triton":
        kernels = importlib.import_module("weaktr.kernels.clipped_cross_entropy")
        monkeypatch.setattr(kernels.cells, "WARP", 128)
        monkeypatch.setattr(kernels.launches, "FLAT_BLOCK", 4096)


def golden_case(golden, name, start):
    """(logits, labels, patch size, stored maps by name, stride of the stored maps)."""
    arrays = load_file(golden / "D_gradient_clipping.safetensors")
    suffix = "_s8" if name == "p480" else ""
    maps = ("ori_loss", "loss", "grad_logits")
    stored = {key: arrays[f"{name}.start{start}.{key}{suffix}"] for key in maps}
    if name != "p480":
        return arrays[f"{name}.logits"], arrays[f"{name}.gt"], 16, stored, 1
    lows = (arrays["p480.lo_logits"], arrays["p480.lo_gt"])
    logits, labels = (x.repeat_interleave(16, -1).repeat_interleave(16, -2) for x in lows)
    return logits, labels, 120, stored, 8


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SCALARS)
def test_published_code(golden, backend, device, name, start):
    if name != "s1" and backend == "triton" and INTERPRETED:
        pytest.skip("many pixels take the interpreter minutes; s1 holds it to the same code")
    logits, labels, patch_size, stored, stride = golden_case(golden, name, start)
    logits = logits.to(device).requires_grad_()
    result = clipped_cross_entropy(
        logits, labels.to(device), patch_size=patch_size, start_value=start, backend=backend
    )
    (gradient,) = torch.autograd.grad(result.loss, logits)

    mean_loss, clipped_loss = SCALARS[name]
    active = start > mean_loss
    assert result.clipped.item() is active
    assert result.mean_loss.item() == pytest.approx(mean_loss, rel=1e-6)
    expected_loss = clipped_loss if active else mean_loss
    assert result.loss.item() == pytest.approx(expected_loss, rel=1e-6)

    every = (..., slice(None, None, stride), slice(None, None, stride))
    assert_close(result.loss_map[every].cpu(), stored["ori_loss"], "golden")
    assert_close(gradient[every].cpu(), stored["grad_logits"], "golden_gradient")
    clipped_map = result.loss_map
    if active:
        thresholds = clip_losses(clipped_map, patch_size, 0.0).thresholds
        clipped_map = clipped_map.minimum(of_pixels(thresholds, patch_size, clipped_map))
    assert_close(clipped_map[every].cpu(), stored["loss"], "golden")


def by_hand(logits, labels, patch_size, start_value, ignore_index=255):
    """The formula in NumPy, tile by tile: (loss, gradient, mean, loss map)."""
    height, width = labels.shape[1:]
    shifted = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    loss_map = np.zeros(labels.shape)
    onehot = np.zeros_like(p)
    for b, y, x in np.argwhere(labels != ignore_index):
        loss_map[b, y, x] = -np.log(p[b, labels[b, y, x], y, x])
        onehot[b, labels[b, y, x], y, x] = 1
    threshold = np.full((height, width), loss_map.mean())
    for y in range(0, height, patch_size):
        for x in range(0, width, patch_size):
            tile = (slice(y, y + patch_size), slice(x, x + patch_size))
            threshold[tile] = max(loss_map[:, *tile].mean(), loss_map.mean())
    keeps = (loss_map <= threshold) | (loss_map.mean() > start_value)
    loss = np.where(keeps, loss_map, threshold).mean()
    weight = keeps * (labels != ignore_index) / labels.size
    return loss, (p - onehot) * weight[:, None], loss_map.mean(), loss_map


@pytest.mark.parametrize("tile", [(4, 4), (5, 3), (1, 13), (7, 13)])
def test_sums_of_tiles_make_the_means_of_pooling(device, tile):
    image = torch.rand(7, 13, dtype=torch.float64)
    image[3, 9] = math.nan
    expected = F.avg_pool2d(image[None], tile, ceil_mode=True)[0]
    image = image.to(device)
    means = sums_of_tiles(image, tile) / sums_of_tiles(torch.ones_like(image), tile)
    assert means.isnan().sum() == 1
    assert_close(means.cpu().nan_to_num(-1), expected.nan_to_num(-1), "float64")


@pytest.mark.parametrize("start", [0.5, 1e3])
@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [
        ((1, 5, 14, 14), 4),  # the published code fails on these two
        ((1, 5, 10, 10), 4),
        ((3, 2, 7, 13), 4),
        ((1, 3, 5, 9), 120),  # one tile larger than the image
        ((2, 3, 6, 4), 1),
        ((1, 1, 3, 3), 2),
        ((1, 4, 1, 1), 3),
    ],
)
def test_any_tile_size(backend, device, shape, patch_size, start):
    batch, num_labels, height, width = shape
    logits = torch.randn(shape, dtype=torch.float64) * 2
    labels = torch.randint(num_labels, (batch, height, width))
    labels[torch.rand(labels.shape) < 0.2] = 255
    expected = by_hand(logits.numpy(), labels.numpy(), patch_size, start)
    leaf = logits.to(device).requires_grad_()
    result = clipped_cross_entropy(
        leaf, labels.to(device), patch_size=patch_size, start_value=start, backend=backend
    )
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    actual = (result.loss, gradient, result.mean_loss, result.loss_map)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got.cpu(), torch.as_tensor(wanted), "float64")


def example(shape, dtype=torch.float32, ignored=0.2):
    """(logits [B, L, h, w], labels [B, H, W]) for a shape (B, L, h, w, H, W)."""
    batch, num_labels, *small, height, width = shape
    logits = torch.randn(batch, num_labels, *small, dtype=torch.float64).mul(3).to(dtype)
    labels = torch.randint(num_labels, (batch, height, width))
    labels[torch.rand(labels.shape) < ignored] = 255
    return logits, labels


def definition(logits, labels, patch_size, start_value):
    """The loss as the eager formula gives it."""
    return clip_losses(pixel_losses(logits, labels, 255), patch_size, start_value)


SHAPES = [
    (1, 1, 2, 3, 32, 48),
    (3, 2, 3, 4, 22, 29),  # times 7.3
    (1, 21, 3, 2, 48, 32),  # times 16
    (1, 33, 2, 2, 20, 9),
    (1, 256, 1, 2, 3, 9),
    (2, 5, 1, 1, 20, 33),  # one pixel of logits
    (2, 6, 9, 11, 9, 11),  # the same size
    (1, 9, 6, 5, 6, 40),  # the same height
    (1, 11, 2, 2, 64, 64),  # times 32
    (1, 4, 16, 17, 7, 5),  # fewer pixels than logits
]


@pytest.mark.parametrize(
    ("shape", "start"), [*((shape, 1e3) for shape in SHAPES), (SHAPES[1], 0.1)]
)
def test_backends_agree_with_the_definition(backend, device, shape, start):
    logits, labels = (x.to(device) for x in example(shape))
    logits.requires_grad_()
    expected = definition(logits, labels, 13, start)
    got = clipped_cross_entropy(logits, labels, patch_size=13, start_value=start, backend=backend)
    (gradient,) = torch.autograd.grad(got.loss, logits)
    for name in ("loss", "mean_loss", "loss_map", "thresholds"):
        assert_close(getattr(got, name), getattr(expected, name), "float32")
    assert_close(gradient, torch.autograd.grad(expected.loss, logits)[0], "float32")


@pytest.mark.parametrize("start", [1e3, 0.1])
def test_parts_of_a_batch_add_up_to_it(backend, device, start, monkeypatch):
    """Two processes with two images and one: each in turn gets the sums of both."""
    logits, labels = (x.to(device) for x in example(SHAPES[1]))
    logits.requires_grad_()
    options = {"patch_size": 13, "start_value": start, "backend": backend}
    whole = clipped_cross_entropy(logits, labels, **options)
    (expected,) = torch.autograd.grad(whole.loss, logits)
    sums = []

    def part(rows):
        own = logits[rows].detach().requires_grad_()
        result = clipped_cross_entropy(own, labels[rows], batch=3, **options)
        return result, torch.autograd.grad(result.loss, own)[0]

    monkeypatch.setattr(processes, "total", lambda values: sums.append(values) or values)
    rows = (slice(0, 2), slice(2, 3))
    for own in rows:
        part(own)
    monkeypatch.setattr(processes, "total", lambda values: sums[0] + sums[1])
    (first, of_first), (second, of_second) = map(part, rows)
    assert_close(first.loss + second.loss, whole.loss, "float32")
    for own in (first, second):
        assert_close(own.mean_loss, whole.mean_loss, "float32")
        assert_close(own.thresholds, whole.thresholds, "float32")
        assert own.clipped == whole.clipped == (start > 1)
    assert_close(torch.cat([of_first, of_second]), expected, "float32")


@pytest.mark.parametrize("elements", [50, 5000])
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu_tiles_of_any_size(monkeypatch, shape, elements):
    monkeypatch.setattr(cpu, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(cpu, "TILE_COLUMNS", 3)
    monkeypatch.setattr(cpu, "TILE_SOURCE", 2)
    logits, labels = example(shape, torch.float64)
    weight = torch.randn(labels.shape, dtype=torch.float64)
    logits.requires_grad_()
    expected = pixel_losses(logits, labels, 255)
    got = cpu.TiledCrossEntropy.apply(logits, labels, 255)
    assert_close(got, expected, "float64")
    gradients = [torch.autograd.grad(losses, logits, weight)[0] for losses in (got, expected)]
    assert_close(*gradients, "float64")


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.fixture
def threads():
    """Sets torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_cpu_threads_do_not_change_a_bit(threads):
    logits, labels = example((2, 21, 15, 15, 240, 240))
    logits.requires_grad_()
    results = []
    for count in (1, 3, 2):
        threads(count)
        loss = clipped_cross_entropy(logits, labels, backend="torch").loss
        results.append((loss.item(), torch.autograd.grad(loss, logits)[0]))
        assert torch.get_num_threads() == count
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)  # its mean depends on the threads
        assert torch.equal(gradient, results[0][1])


def test_cpu_never_holds_the_enlarged_logits(threads):
    threads(1)  # others are not seen here
    logits, labels = example((2, 21, 15, 15, 240, 240))
    logits.requires_grad_()
    with LargestTensor() as largest:
        loss = clipped_cross_entropy(logits, labels, backend="torch").loss
        torch.autograd.grad(loss, logits)
    assert largest.elements <= cpu.TILE_ELEMENTS < 21 * labels.numel()


def test_cpu_tiles_stay_in_float32_under_autocast():
    logits, labels = example((2, 21, 5, 4, 80, 64))
    logits.requires_grad_()
    expected = clipped_cross_entropy(logits, labels, backend="torch").loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = clipped_cross_entropy(logits, labels, backend="torch").loss
        (gradient,) = torch.autograd.grad(got, logits)
    assert got == expected
    assert torch.equal(gradient, torch.autograd.grad(expected, logits)[0])


def test_enlarges_low_resolution_logits(backend, device):
    logits = torch.randn(2, 4, 5, 3, device=device)
    labels = torch.randint(4, (2, 33, 20), device=device, dtype=torch.uint8)
    large = F.interpolate(logits, (33, 20), mode="bilinear", align_corners=False)
    inside = clipped_cross_entropy(logits, labels, patch_size=8, start_value=9.0, backend=backend)
    outside = clipped_cross_entropy(large, labels, patch_size=8, start_value=9.0, backend=backend)
    assert_close(inside.loss, outside.loss, "float32")
    assert_close(inside.loss_map, outside.loss_map, "float32")


def test_gradient_is_that_of_the_loss(backend, device):
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.randint(3, (1, 5, 4), device=device)
    labels[0, :2] = 255

    def unclipped(x):
        return clipped_cross_entropy(x, labels, start_value=0.0, backend=backend).loss

    assert torch.autograd.gradcheck(unclipped, logits)


def test_clipped_pixels_send_no_gradient(backend, device):
    logits = torch.zeros(1, 2, 4, 4, device=device)
    logits[0, 0] = 3.0
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    labels[0, 1, 2] = 1  # the one wrong pixel
    logits.requires_grad_()
    result = clipped_cross_entropy(logits, labels, patch_size=4, backend=backend)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert result.clipped
    assert gradient[0, :, 1, 2].abs().max() == 0
    assert (gradient.abs().amax(1) > 0).sum() == 15


def test_equal_losses_keep_their_whole_gradient(backend, device):
    logits = torch.zeros(1, 2, 4, 4, device=device, requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    loss = clipped_cross_entropy(logits, labels, patch_size=2, backend=backend).loss
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient[:, 0], torch.full_like(gradient[:, 0], -0.5 / 16), "float32")


def test_everything_ignored(backend, device):
    logits = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    labels = torch.full((1, 8, 8), 255, dtype=torch.uint8, device=device)
    result = clipped_cross_entropy(logits, labels, backend=backend)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert result.loss == result.mean_loss == 0
    assert gradient.abs().max() == 0


def test_nan_logits_give_a_nan_loss(backend, device):
    logits = torch.randn(1, 3, 8, 8, device=device)
    logits[0, 1, 2, 3] = math.nan
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8, device=device)
    result = clipped_cross_entropy(logits, labels, patch_size=4, backend=backend)
    assert result.loss.isnan()
    assert result.mean_loss.isnan()
    assert result.loss_map.isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, device, dtype):
    logits = torch.randn(2, 3, 5, 5, device=device).to(dtype)
    labels = torch.randint(3, (2, 20, 20), device=device)
    half = clipped_cross_entropy(logits, labels, patch_size=7, backend=backend)
    full = clipped_cross_entropy(logits.double(), labels, patch_size=7, backend=backend)
    assert half.loss.dtype == torch.float32
    assert_close(half.loss.double(), full.loss, "float32")


def test_other_ignore_index_and_strided_inputs(backend, device):
    logits = torch.randn(2, 8, 8, 5, device=device).permute(0, 3, 1, 2)
    labels = torch.randint(5, (2, 8, 16), device=device)[..., ::2]
    labels[0, 0] = -1
    got = clipped_cross_entropy(logits, labels, ignore_index=-1, start_value=9.0, backend=backend)
    moved = torch.where(labels == -1, 255, labels).contiguous()
    expected = clipped_cross_entropy(logits.contiguous(), moved, start_value=9.0, backend=backend)
    assert_close(got.loss, expected.loss, "float32")


LOGITS = torch.zeros(2, 3, 4, 4)
LABELS = torch.zeros(2, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[0], LABELS, r"logits: expected .*\[B, L, h, w\].*got torch.float32 \(3, 4, 4\)"),
        (LOGITS.long(), LABELS, r"logits: expected floating point"),
        (LOGITS, LABELS[0], r"labels: expected .*\[B, H, W\].*got torch.uint8 \(4, 4\)"),
        (LOGITS, LABELS.float(), r"labels: expected uint8 or int64"),
        (LOGITS, LABELS[:1], r"labels: expected a batch of 2 .*got 1"),
        (LOGITS, LABELS[:, :0], r"labels: .*none of them 0"),
        (LOGITS, LABELS + 3, r"labels: expected 0..2 or 255 \(ignore\), got \[3\]"),
        (LOGITS, LABELS.long() - 7, r"labels: expected 0..2 or 255 \(ignore\), got \[-7\]"),
    ],
)
def test_bad_input_is_named(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        clipped_cross_entropy(logits, labels)


def test_bad_patch_size_is_named():
    with pytest.raises(ValueError, match="patch_size: expected at least 1 pixel, got 0"):
        clipped_cross_entropy(LOGITS, LABELS, patch_size=0)
