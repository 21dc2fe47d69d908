"""`head_stats` and `fuse_heads` against the literal softmax, values and the gradient in w."""

import itertools
from importlib import import_module

import pytest
import torch

from weaktr.ops import fuse_heads, head_stats

SHAPES = [(1, 1, 1, 5, 8), (2, 3, 4, 37, 16), (3, 2, 20, 49, 24)]  # B, H, C, P, d


def attention_inputs(batch, heads, classes, patches, dim, extra=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + 7 * patches)
    tokens = classes + extra + patches
    q, k = torch.randn(2, batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype)


def literal(q, k):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)


@pytest.mark.parametrize(("shape", "registers"), list(itertools.product(SHAPES, (0, 4))))
def test_head_stats_equals_softmax_slices(shape, registers):
    _, _, classes, patches, _ = shape
    q, k = attention_inputs(*shape, extra=registers)
    attention = literal(q, k)
    stats = head_stats(q, k, num_classes=classes, num_patches=patches)
    first = q.shape[2] - patches
    torch.testing.assert_close(stats.class_rows, attention[:, :, :classes, first:])
    torch.testing.assert_close(stats.column_means, attention[:, :, first:, first:].mean(2))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    torch.testing.assert_close(stats.lse, logits.logsumexp(-1))


def test_head_stats_with_known_lse_and_without_means():
    q, k = attention_inputs(2, 3, 4, 37, 16)
    full = head_stats(q, k, num_classes=4, num_patches=37)
    again = head_stats(q, k, num_classes=4, num_patches=37, lse=full.lse, column_means=False)
    torch.testing.assert_close(again.class_rows, full.class_rows)
    assert again.column_means is None


def test_head_stats_does_not_depend_on_the_chunk(monkeypatch):
    q, k = attention_inputs(2, 3, 4, 37, 16)
    whole = head_stats(q, k, num_classes=4, num_patches=37)
    monkeypatch.setattr(import_module("weaktr.ops.head_stats"), "CHUNK_BYTES", 1)
    small = head_stats(q, k, num_classes=4, num_patches=37)
    torch.testing.assert_close(small.class_rows, whole.class_rows)
    torch.testing.assert_close(small.column_means, whole.column_means)


@pytest.mark.parametrize(("shape", "registers"), list(itertools.product(SHAPES, (0, 4))))
def test_fuse_heads_equals_weighted_attention(shape, registers, monkeypatch):
    batch, maps, classes, patches, _ = shape
    q, k = attention_inputs(*shape, extra=registers)
    lse = head_stats(q, k, num_classes=classes, num_patches=patches).lse
    weights = torch.rand(batch, maps, dtype=torch.float64)
    values = torch.rand(batch, patches, 3, dtype=torch.float64)
    fused = (weights[:, :, None, None] * literal(q, k)).mean(1)[:, -patches:, -patches:]
    torch.testing.assert_close(fuse_heads(q, k, lse, weights, values), fused @ values)
    monkeypatch.setattr(import_module("weaktr.ops.fuse_heads"), "CHUNK_BYTES", 1)
    torch.testing.assert_close(fuse_heads(q, k, lse, weights, values), fused @ values)


def test_mean_of_the_fine_cam_needs_only_the_statistics():
    """algorithms.md 2: fine logit and its gradient in w from class rows and column means."""
    batch, heads, classes, patches, dim = 2, 5, 4, 30, 8
    q, k = attention_inputs(batch, heads, classes, patches, dim)
    coarse = torch.rand(batch, classes, patches, dtype=torch.float64)
    weights = torch.rand(batch, heads, dtype=torch.float64, requires_grad=True)

    attention = (weights[:, :, None, None] * literal(q, k)).mean(1)
    cross, patch = attention[:, :classes, classes:], attention[:, classes:, classes:]
    fine = torch.einsum("bij,bcj->bci", patch, cross * coarse)
    expected = fine.mean(-1)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), weights)

    stats = head_stats(q, k, num_classes=classes, num_patches=patches)
    cross = torch.einsum("bm,bmcj->bcj", weights, stats.class_rows) / heads
    columns = torch.einsum("bm,bmj->bj", weights, stats.column_means) / heads
    cheap = torch.einsum("bj,bcj,bcj->bc", columns, cross, coarse)
    (cheap_grad,) = torch.autograd.grad(cheap.square().sum(), weights)
    torch.testing.assert_close(cheap, expected)
    torch.testing.assert_close(cheap_grad, expected_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    q, k = attention_inputs(2, 3, 4, 37, 16, dtype=dtype)
    stats = head_stats(q, k, num_classes=4, num_patches=37)
    exact = head_stats(q.double(), k.double(), num_classes=4, num_patches=37)
    assert stats.class_rows.dtype == torch.float32
    torch.testing.assert_close(stats.class_rows.double(), exact.class_rows, atol=1e-6, rtol=1e-5)


def test_wrong_shapes_are_named():
    q, k = attention_inputs(2, 3, 4, 37, 16)
    lse = torch.zeros(2, 3, 41)
    with pytest.raises(ValueError, match=r"k: expected shape"):
        head_stats(q, k[:, :, 1:], num_classes=4, num_patches=37)
    with pytest.raises(ValueError, match=r"num_classes: expected"):
        head_stats(q, k, num_classes=5, num_patches=37)
    with pytest.raises(ValueError, match=r"weights: expected shape \(2, 3\)"):
        fuse_heads(q, k, lse, torch.ones(2, 4), torch.ones(2, 37, 1))
    with pytest.raises(ValueError, match=r"lse: expected shape"):
        fuse_heads(q, k, lse[:, :, 1:], torch.ones(2, 3), torch.ones(2, 37, 1))
