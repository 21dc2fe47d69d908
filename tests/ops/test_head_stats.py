"""`head_stats`, every backend, against the literal softmax."""

import itertools
from importlib import import_module

import pytest
import torch

from tests.ops.attention import (
    SHAPES,
    attention_inputs,
    every_config,
    home,
    literal,
    literal_lse,
    strided,
    tolerance_row,
)
from tests.tolerances import assert_close
from weaktr.ops import head_stats, head_stats_packed
from weaktr.ops.registry import BackendUnavailable

OP = "head_stats"


def expected_stats(q, k, classes, patches):
    attention = literal(q, k)
    first = q.shape[2] - patches
    return (
        attention[:, :, :classes, first:],
        attention[:, :, first:, first:].mean(2),
        literal_lse(q, k),
    )


@pytest.mark.parametrize(("shape", "registers"), list(itertools.product(SHAPES, (0, 4))))
def test_equals_slices_of_the_softmax(shape, registers, backend):
    _, _, classes, patches, _ = shape
    q, k = attention_inputs(*shape, extra=registers, backend=backend)
    stats = head_stats(q, k, num_classes=classes, num_patches=patches, backend=backend)
    for actual, expected in zip(stats, expected_stats(q, k, classes, patches), strict=True):
        assert_close(actual, expected, tolerance_row(backend))


def test_known_lse_and_no_means(backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend)
    settings = {"num_classes": 4, "num_patches": 37, "backend": backend}
    full = head_stats(q, k, **settings)
    again = head_stats(q, k, lse=strided(full.lse), column_means=False, **settings)
    assert_close(again.class_rows, full.class_rows, tolerance_row(backend))
    assert again.column_means is None
    shifted = head_stats(q, k, lse=full.lse + 1, **settings)
    assert_close(shifted.column_means * torch.e, full.column_means, tolerance_row(backend))


def test_scale_is_heeded(backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend)
    settings = {"num_classes": 4, "num_patches": 37, "backend": backend}
    scaled = head_stats(q, k, scale=0.5, **settings)
    same = head_stats(2 * q, k, scale=0.25, **settings)
    for actual, expected in zip(scaled, same, strict=True):
        assert_close(actual, expected, tolerance_row(backend))
    assert not torch.allclose(scaled.lse, head_stats(q, k, **settings).lse)
    negative = head_stats(-q, k, scale=-0.5, **settings)
    for actual, expected in zip(negative, scaled, strict=True):
        assert_close(actual, expected, tolerance_row(backend))


def test_does_not_depend_on_strides(backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend)
    settings = {"num_classes": 4, "num_patches": 37, "backend": backend}
    contiguous = head_stats(q, k, **settings)
    spread = head_stats(strided(q), strided(k), **settings)
    packed = torch.stack([q, k]).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 2, H, d] as in a ViT
    from_vit = head_stats(*packed.permute(2, 0, 3, 1, 4), **settings)
    for expected, *others in zip(contiguous, spread, from_vit, strict=True):
        for actual in others:
            assert_close(actual, expected, tolerance_row(backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend, dtype=dtype)
    stats = head_stats(q, k, num_classes=4, num_patches=37, backend=backend)
    plain = torch.softmax(q @ k.transpose(-1, -2) / 4, -1)
    plain = (plain[:, :, :4, 4:], plain[:, :, 4:, 4:].mean(2))
    for actual, half, expected in zip(stats, plain, expected_stats(q, k, 4, 37), strict=False):
        assert actual.dtype == torch.float32
        assert_close(actual, expected, "float32")
        assert (actual - expected).abs().max() <= 2 * (half - expected).abs().max()


def test_no_image(backend):
    q = torch.zeros(0, 3, 9, 16, device=home(backend))
    stats = head_stats(q, q, num_classes=4, num_patches=5, backend=backend)
    assert [part.shape for part in stats] == [(0, 3, 4, 5), (0, 3, 5), (0, 3, 9)]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("tokens", "patches"), [([12, 50, 7], [7, 41, 4]), ([5, 3, 40], [2, 0, 33]), ([4], [1])]
)
def test_packed_batch_equals_its_images(tokens, patches, known, backend):
    q, k = (x[0] for x in attention_inputs(1, 4, 0, sum(tokens), 16, backend=backend))
    images = list(zip(q[None].split(tokens, 2), k[None].split(tokens, 2), patches, strict=True))
    lse = torch.cat([literal_lse(a, b)[0] for a, b, _ in images], 1).to(q.dtype) if known else None
    sizes = {"num_classes": 3, "tokens": tokens, "patches": patches, "backend": backend}
    stats = head_stats_packed(q, k, lse=None if lse is None else strided(lse), **sizes)
    alone = [expected_stats(a, b, 3, count) for a, b, count in images]
    for actual, *expected in zip(stats, *alone, strict=True):
        assert_close(actual, torch.cat(expected, -1)[0], tolerance_row(backend))
    rows = head_stats_packed(q, k, column_means=False, **sizes)
    assert_close(rows.class_rows, stats.class_rows, tolerance_row(backend))
    assert rows.column_means is None


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("column_means", [False, True])
@pytest.mark.parametrize("classes", [[[2], [0, 2], []], [[], [], []], [[0, 1, 2], [2, 1], [1]]])
def test_rows_of_each_images_own_classes(classes, column_means, known, backend):
    tokens, patches = [12, 50, 7], [7, 41, 4]
    q, k = (x[0] for x in attention_inputs(1, 4, 0, sum(tokens), 16, backend=backend))
    sizes = {"num_classes": 3, "tokens": tokens, "patches": patches, "backend": backend}
    everything = head_stats_packed(q, k, **sizes)
    lse = everything.lse.to(q.dtype) if known else None
    chosen = head_stats_packed(q, k, lse=lse, column_means=column_means, classes=classes, **sizes)
    assert chosen.class_rows.shape == (4, max(1, *map(len, classes)), sum(patches))
    parts = zip(
        chosen.class_rows.split(patches, 2), everything.class_rows.split(patches, 2), classes,
        strict=True,
    )  # fmt: skip
    for own, every_row, indices in parts:
        assert_close(own[:, : len(indices)], every_row[:, indices], tolerance_row(backend))
        assert torch.isfinite(own).all()
    if column_means:
        assert_close(chosen.column_means, everything.column_means, tolerance_row(backend))
    assert_close(chosen.lse, everything.lse, tolerance_row(backend))


def test_packed_batch_of_no_image(backend):
    q = torch.zeros(4, 0, 16, device=home(backend))
    stats = head_stats_packed(q, q, num_classes=3, tokens=[], patches=[], backend=backend)
    assert [part.shape for part in stats] == [(4, 3, 0), (4, 0), (4, 0)]


def test_carries_no_gradient(backend):
    q, k = (x.requires_grad_() for x in attention_inputs(1, 2, 3, 9, 16, backend=backend))
    stats = head_stats(q, k, num_classes=3, num_patches=9, backend=backend)
    assert not any(part.requires_grad for part in stats)


def test_twice_is_the_same_bits(backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend)
    first, second = (
        head_stats(q, k, num_classes=4, num_patches=37, backend=backend) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_torch_compile_takes_it_whole(backend):
    q, k = attention_inputs(2, 3, 4, 37, 16, backend=backend)

    def total(q, k):
        stats = head_stats(2 * q, k, num_classes=4, num_patches=37, backend=backend)
        return stats.class_rows.sum(2) + stats.column_means

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert_close(compiled(q, k), total(q, k), tolerance_row(backend))


def test_torch_backend_does_not_depend_on_the_chunk(monkeypatch):
    q, k = attention_inputs(2, 3, 4, 37, 16)
    whole = head_stats(q, k, num_classes=4, num_patches=37, backend="torch")
    monkeypatch.setattr(import_module("weaktr.ops.attention_maps"), "CHUNK_BYTES", 1)
    small = head_stats(q, k, num_classes=4, num_patches=37, backend="torch")
    assert_close(small.class_rows, whole.class_rows, "float64")
    assert_close(small.column_means, whole.column_means, "float64")


def test_wrong_shapes_are_named():
    q, k = attention_inputs(2, 3, 4, 37, 16)
    with pytest.raises(ValueError, match=r"k: expected shape"):
        head_stats(q, k[:, :, 1:], num_classes=4, num_patches=37)
    with pytest.raises(ValueError, match=r"num_classes: expected"):
        head_stats(q, k, num_classes=5, num_patches=37)
    with pytest.raises(ValueError, match=r"lse: expected shape"):
        head_stats(q, k, num_classes=4, num_patches=37, lse=q[:, :, 1:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [9, 50]}, r"patches: expected one number per image.* \[9, 50\], got"),
        ({"tokens": [9, 50, 7]}, r"tokens: expected a sum of ΣN = 65, got 66"),
        ({"num_classes": 3}, r"C \+ P <= N for each image, got C = 3, P = \[7, 41, 4\]"),
        ({"classes": [[0], [1]]}, r"classes: expected a list of indices 0..1 for each of the 3"),
        ({"classes": [[0], [2], []]}, r"classes: expected a list of indices 0..1 .* got"),
    ],
)
def test_wrong_packing_is_named(changes, message):
    sizes = {"num_classes": 2, "tokens": [9, 50, 6], "patches": [7, 41, 4]}
    q = torch.zeros(2, 65, 8)
    with pytest.raises(ValueError, match=message):
        head_stats_packed(q, q, **(sizes | changes))


# ---- Triton alone -------------------------------------------------------------------------------


@every_config
def test_every_configuration_gives_the_same(kernels, dtype, config, monkeypatch):
    monkeypatch.setattr(kernels, "configs", lambda: (config,))
    q, k = attention_inputs(1, 2, 3, 71, 24, backend="triton", dtype=dtype)
    stats = head_stats(q, k, num_classes=3, num_patches=71, backend="triton")
    for actual, expected in zip(stats, expected_stats(q, k, 3, 71), strict=True):
        assert_close(actual, expected, "float32")


def test_operators_are_registered_as_torch_wants_them(kernels):
    q, k = attention_inputs(1, 2, 4, 5, 16, backend="triton")
    torch.library.opcheck(kernels.lse_op, (q, k, 0.25))
    lse = kernels.attention_lse(q, k, 0.25)
    for column_means in (True, False):
        torch.library.opcheck(kernels.stats_op, (q, k, lse, 4, 5, 0.25, column_means))
    packed = ([4, 5], [2, 1])
    torch.library.opcheck(kernels.lse_op, (q[:1], k[:1], 0.25, packed[0]))
    torch.library.opcheck(kernels.stats_op, (q[:1], k[:1], lse[:1], 2, 3, 0.25, True, *packed))


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 3, 9, 16), torch.float64, "take float16, bfloat16 and float32, got torch.float64"),
        ((1, 2, 3, 9, 136), torch.float32, "take a head width d of at most 128, got 136"),
    ],
)
def test_what_kernels_do_not_take_is_refused(kernels, shape, dtype, reason):
    q, k = attention_inputs(*shape, backend="triton", dtype=dtype)
    with pytest.raises(BackendUnavailable, match=reason):
        head_stats(q, k, num_classes=3, num_patches=9, backend="triton")
    stats = head_stats(q, k, num_classes=3, num_patches=9)
    assert_close(stats.class_rows, literal(q, k)[:, :, :3, 3:], "float32")


def test_cpu_tensors_are_refused_unless_interpreted(compiled_kernels):
    q = torch.zeros(1, 2, 12, 16)
    with pytest.raises(BackendUnavailable, match=r"CUDA tensors, got cpu; set TRITON_INTERPRET=1"):
        head_stats(q, q, num_classes=3, num_patches=9, backend="triton")
