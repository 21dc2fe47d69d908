"""Triton's kernels at full size against the definition on the same GPU; twice, the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import GOLDEN_RELATIVE, assert_golden
from weaktr.ops import clipped_cross_entropy, fuse_heads, head_stats

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: too large for Triton's interpreter"
)
#: B, H, C, P, d: a photograph of 500 x 600 of DeiT-S; 16k tokens, 200 classes; a training batch.
SHAPES = [
    (1, 72, 20, 1147, 64),
    (1, 2, 200, 16184, 64),
    (64, 6, 20, 196, 64),
    (2, 16, 90, 1369, 80),
]
DTYPES = [torch.float32, torch.bfloat16]


def maps(shape, dtype):
    batch, heads, classes, patches, dim = shape
    generator = torch.Generator("cuda").manual_seed(0)
    size = (2, batch, heads, classes + patches, dim)
    q, k = torch.randn(size, generator=generator, device="cuda").to(dtype)
    return q, k, {"num_classes": classes, "num_patches": patches}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_head_stats(shape, dtype):
    q, k, sizes = maps(shape, dtype)
    first, again = (head_stats(q, k, backend="triton", **sizes) for _ in range(2))
    for actual, same, expected in zip(
        first, again, head_stats(q, k, backend="torch", **sizes), strict=True
    ):
        assert torch.equal(actual, same)
        assert_golden(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape, dtype):
    kernels = pytest.importorskip("weaktr.kernels.attention", exc_type=ImportError)
    q, k, sizes = maps(shape, dtype)
    v = torch.randn_like(q)
    first, again = (
        kernels.in_one_launch(q, k, v, *sizes.values(), kernels.configs()[0]) for _ in range(2)
    )
    for actual, same in zip(first, again, strict=True):
        assert torch.equal(actual, same)
    out, lse, rows, means = first
    expected = head_stats(q, k, backend="torch", **sizes)
    for actual, wanted in zip((rows, means, lse), expected, strict=True):
        assert_golden(actual, wanted)
    plain = F.scaled_dot_product_attention(q, k, v).float()
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    bound = 2 * (plain - exact).abs().max() + GOLDEN_RELATIVE * exact.abs().max()
    assert (out - exact).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fuse_heads(shape, dtype):
    q, k, sizes = maps(shape, dtype)
    lse = head_stats(q, k, backend="torch", column_means=False, **sizes).lse
    weights = torch.rand(shape[:2], device="cuda")
    values = torch.rand(shape[0], shape[3], 4, device="cuda")

    def run(backend):
        leaves = [x.clone().requires_grad_() for x in (weights, values)]
        fine = fuse_heads(q, k, lse, *leaves, backend=backend)
        return fine.detach(), *torch.autograd.grad(fine.square().sum(), leaves)

    for actual, same, expected in zip(run("triton"), run("triton"), run("torch"), strict=True):
        assert torch.equal(actual, same)
        assert_golden(actual, expected)


@pytest.mark.parametrize(("batch", "num_labels", "low"), [(16, 91, 30), (4, 21, 30), (2, 256, 15)])
def test_clipped_cross_entropy(batch, num_labels, low):
    logits = torch.randn(batch, num_labels, low, low, device="cuda")
    labels = torch.randint(num_labels, (batch, 480, 480), device="cuda")

    def run(backend):
        leaf = logits.clone().requires_grad_()
        result = clipped_cross_entropy(leaf, labels, start_value=9.0, backend=backend)
        return result.loss_map, *torch.autograd.grad(result.loss, leaf)

    for actual, same, expected in zip(run("triton"), run("triton"), run("torch"), strict=True):
        assert torch.equal(actual, same)
        assert_golden(actual, expected)
