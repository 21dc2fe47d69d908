"""`clipped_cross_entropy` in Triton: what its kernels promise beyond the op's own tests.

Interpreted where there is no GPU, compiled where there is one.
"""

import pytest
import torch

from tests.ops.test_clipped_cross_entropy import example
from tests.tolerances import assert_close, assert_golden
from weaktr.ops import clipped_cross_entropy
from weaktr.ops.clipped_cross_entropy.definition import pixel_losses
from weaktr.ops.registry import BackendUnavailable

OP = "clipped_cross_entropy"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = (2, 5, 2, 3, 5, 8)
#: Several cells, and quads that are not full; interpreted, fewer labels and strips instead.
RAGGED = (2, 21, 3, 4, 22, 29) if DEVICE == "cuda" else (1, 6, 2, 3, 36, 13)


def inputs(shape, dtype=torch.float32):
    logits, labels = example(shape, dtype)
    return logits.to(DEVICE).requires_grad_(), labels.to(DEVICE)


def loss_and_gradient(logits, labels, **settings):
    settings = {"patch_size": 4, "start_value": 1e3, "backend": "triton", **settings}
    result = clipped_cross_entropy(logits, labels, **settings)
    return result, torch.autograd.grad(result.loss, logits)[0]


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [(SMALL, 4, 2), ((1, 5, 5, 7, 5, 7), 2, 1), ((1, 7, 2, 3, 7, 20), 2, 1)],
)
def test_many_programs_share_the_work(kernels, monkeypatch, shape, rows, columns):
    config = {"ROWS": rows, "COLUMNS": columns, "num_warps": 1}
    for name in ("FORWARD_CONFIGS", "BACKWARD_CONFIGS"):
        monkeypatch.setattr(kernels.launches, name, (config,))
    monkeypatch.setattr(kernels.cells, "WARP", 4)
    for name, value in {"QUADS_BACK": 1, "FLAT_BLOCK": 16}.items():
        monkeypatch.setattr(kernels.launches, name, value)
    for name, value in {"PIECE_ROWS": 2, "PIECE_ACROSS": 2, "PIECE_PIXELS": 2}.items():
        monkeypatch.setattr(kernels.launches, name, value)
    logits, labels = inputs(shape)
    got, gradient = loss_and_gradient(logits, labels)
    expected, expected_gradient = loss_and_gradient(logits, labels, backend="torch")
    for actual, wanted in zip(got[:3], expected[:3], strict=True):
        assert_close(actual, wanted, "float32")
    assert_close(gradient, expected_gradient, "float32")


@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
def test_labels_that_change_places_within_a_cell(kernels, size):
    """Both bounds are far above the maximum where the labels cross."""
    logits = torch.full((1, 3, 2, 2), -size, dtype=torch.float64, device=DEVICE)
    logits[0, 0, 0] = logits[0, 1, 1] = size
    labels = torch.arange(17 * 9, device=DEVICE).view(1, 17, 9) % 3
    results = []
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "triton")):
        leaf = logits.to(dtype).requires_grad_()
        results.append(loss_and_gradient(leaf, labels, backend=backend, start_value=0.0))
    (expected, expected_gradient), (got, gradient) = results
    assert_golden(got.loss_map.double(), expected.loss_map)
    assert_golden(gradient.double(), expected_gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_pytorch(kernels, dtype):
    logits, labels = inputs(RAGGED, dtype)
    exact = logits.detach().double().requires_grad_()
    truth, true_gradient = loss_and_gradient(exact, labels, backend="torch")
    got, gradient = loss_and_gradient(logits, labels)
    plain = pixel_losses(logits, labels, 255)
    (plain_gradient,) = torch.autograd.grad(pixel_losses(logits, labels, 255).mean(), logits)
    (true_plain,) = torch.autograd.grad(pixel_losses(exact, labels, 255).mean(), exact)
    assert gradient.dtype == dtype
    error = (got.loss_map - truth.loss_map).abs().max()
    assert error <= 2 * (plain - truth.loss_map).abs().max()
    error = (gradient - true_gradient).abs().max()
    assert error <= 2 * (plain_gradient - true_plain).abs().max()


def test_any_strides(kernels):
    logits, labels = inputs((2, 6, 2, 3, 10, 12))
    expected, expected_gradient = loss_and_gradient(logits, labels)
    channels_last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    wide = torch.full((2, 20, 24), 99, dtype=torch.uint8, device=DEVICE)
    wide[:, ::2, ::2] = labels
    got, gradient = loss_and_gradient(channels_last, wide[:, ::2, ::2])
    scaled = [kernels.scale_logits(x.detach()) for x in (logits, channels_last)]
    assert torch.equal(*scaled)  # behind that, other strides may be other instructions
    assert gradient.stride() == channels_last.stride() != logits.stride()
    assert_close(got.loss_map, expected.loss_map, "float32")
    assert_close(gradient, expected_gradient, "float32")


def test_expanded_logits(kernels):
    logits, labels = inputs(SMALL)
    one = logits[:1].detach().requires_grad_()
    two = one.repeat(2, 1, 1, 1)
    results = [loss_and_gradient(x, labels) for x in (one.expand(2, -1, -1, -1), two)]
    assert torch.equal(results[0][0].loss, results[1][0].loss)
    assert torch.equal(results[0][1], results[1][1])


def test_twice_the_same_bits(kernels):
    logits, labels = inputs(RAGGED)
    first, second = (loss_and_gradient(logits, labels) for _ in range(2))
    assert torch.equal(first[0].loss_map, second[0].loss_map)
    assert torch.equal(first[1], second[1])


def test_a_label_out_of_range_is_seen_in_the_loss(kernels):
    logits, labels = inputs(SMALL)
    labels[1, 2, 3] = 77
    losses, _ = kernels.pixel_losses(kernels.scale_logits(logits.detach()), labels, 5, 255)
    assert losses.isnan().nonzero().tolist() == [[1, 2, 3]]


def test_operators_are_registered_as_torch_wants_them(kernels):
    logits, labels = inputs((1, 3, 2, 2, 3, 4))
    torch.library.opcheck(kernels.clipped_loss, (logits, labels, 2, 1e3, 255, 1))
    loss, *_, scaled, lse = (
        x.detach() for x in kernels.clipped_loss(logits, labels, 2, 1e3, 255, 1)
    )
    arguments = (torch.ones_like(loss), logits.detach(), labels, scaled, lse)
    torch.library.opcheck(kernels.clipped_loss_backward, arguments)


def test_torch_compile_takes_it_whole(kernels):
    logits, labels = inputs(SMALL)

    def step(logits, labels):
        settings = {"patch_size": 4, "start_value": 1e3, "backend": "triton"}
        return clipped_cross_entropy(2 * logits, labels, **settings).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    losses = [run(logits, labels) for run in (compiled, step)]
    assert_close(*losses, "float32")
    assert_close(*(torch.autograd.grad(x, logits)[0] for x in losses), "float32")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 257, 2, 2, 4, 4), "take at most 256 labels, got 257"),
        ((1, 2, 1, 2, 1, 130), "enlarge the width at most 64 times, got 65"),
    ],
)
def test_what_kernels_do_not_take_is_refused(kernels, shape, reason):
    logits, labels = inputs(shape)
    with pytest.raises(BackendUnavailable, match=reason):
        clipped_cross_entropy(logits, labels, backend="triton")
    assert clipped_cross_entropy(logits, labels).loss.isfinite()


def test_cpu_tensors_are_refused_unless_interpreted(compiled_kernels):
    logits, labels = example(SMALL, torch.float32)
    with pytest.raises(BackendUnavailable, match=r"CUDA tensors, got cpu; set TRITON_INTERPRET=1"):
        clipped_cross_entropy(logits, labels, backend="triton")
