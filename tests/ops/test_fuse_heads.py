"""`fuse_heads`, every backend, against the literal softmax; values, gradients, packed batches."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from tests.ops.attention import (
    SHAPES,
    attention_inputs,
    exact_dtype,
    home,
    literal,
    literal_lse,
    strided,
    tolerance_row,
)
from tests.tolerances import assert_close
from weaktr.ops import fuse_heads, fuse_heads_packed, head_stats
from weaktr.ops.registry import OPS, BackendUnavailable

OP = "fuse_heads"


def inputs(batch, maps, classes, patches, dim, channels, backend, extra=0, dtype=None):
    """q, k, lse, weights, values as `fuse_heads` takes them."""
    q, k = attention_inputs(
        *(batch, maps, classes, patches, dim), extra=extra, backend=backend, dtype=dtype
    )
    options = {"dtype": exact_dtype(backend), "device": q.device}
    generator = torch.Generator().manual_seed(channels)
    weights = torch.rand(batch, maps, generator=generator)
    values = torch.rand(batch, patches, channels, generator=generator)
    return q, k, literal_lse(q, k).to(options["dtype"]), weights.to(**options), values.to(**options)


def literal_fusion(q, k, weights, values):
    """Literal softmax maps, weighted, averaged and multiplied, in float64."""
    patches = values.shape[1]
    fused = (weights.double()[:, :, None, None] * literal(q, k)).mean(1)[:, -patches:, -patches:]
    return fused @ values.double()


def with_gradients(run, weights, values):
    """Result of `run(weights, values)`, and the gradients in both of a weighted sum of it."""
    leaves = [x.detach().clone().requires_grad_() for x in (weights, values)]
    fine = run(*leaves)
    direction = torch.linspace(-1, 1, fine.numel(), device=fine.device).view(fine.shape)
    return fine.detach(), *torch.autograd.grad((fine * direction).mean(), leaves)


def assert_all_close(actual, expected, row):
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, row)


def assert_equals_literal(q, k, lse, weights, values, backend):
    """Result and gradients of a backend are those of the literal maps."""
    actual = with_gradients(
        lambda w, v: fuse_heads(q, k, lse, w, v, backend=backend), weights, values
    )
    expected = with_gradients(lambda w, v: literal_fusion(q, k, w, v), weights, values)
    assert_all_close(actual, expected, tolerance_row(backend))


@pytest.mark.parametrize(
    ("shape", "registers", "channels"), list(zip(SHAPES, (4, 0, 0, 4), (1, 5, 1, 3), strict=True))
)
def test_equals_weighted_attention(shape, registers, channels, backend):
    batch, maps, classes, patches, dim = shape
    q, k, lse, weights, values = inputs(
        batch, maps, classes, patches, dim, channels, backend, extra=registers
    )
    assert_equals_literal(q, k, lse, weights, values, backend)


def test_more_channels_than_a_block_holds(backend):
    q, k, lse, weights, values = inputs(1, 2, 1, 33, 16, 70, backend)
    assert_equals_literal(q, k, lse, weights, values, backend)


def test_scale_is_heeded(backend):
    q, k, _, weights, values = inputs(2, 3, 4, 37, 16, 2, backend)
    lse = literal_lse(2 * q, k).to(q.dtype)
    fine = fuse_heads(q, k, lse, weights, values, scale=0.5, backend=backend)
    assert_close(fine, literal_fusion(2 * q, k, weights, values), tolerance_row(backend))


def test_does_not_depend_on_strides(backend):
    tensors = inputs(2, 3, 4, 37, 16, 3, backend)

    def run(q, k, lse, weights, values):
        return with_gradients(
            lambda w, v: fuse_heads(q, k, lse, w, strided(v), backend=backend), weights, values
        )

    *maps, weights, values = (strided(x) for x in tensors)
    assert_all_close(run(*maps, weights, values), run(*tensors), tolerance_row(backend))


def test_values_a_channel_at_a_time_are_the_same_values(backend):
    """As the kernels read them, so that nothing has to be copied."""
    *maps, values = inputs(2, 3, 1, 7, 16, 3, backend)
    channels_first = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert channels_first.stride() != values.stride()
    expected, found = (fuse_heads(*maps, v, backend=backend) for v in (values, channels_first))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    q, k, lse, weights, values = inputs(2, 3, 4, 37, 16, 3, backend, dtype=dtype)
    lse, weights, values = lse.float(), weights.to(dtype), values.to(dtype)
    fine, *gradients = with_gradients(
        lambda w, v: fuse_heads(q, k, lse, w, v, backend=backend), weights, values
    )
    expected = with_gradients(
        lambda w, v: literal_fusion(q, k, w, v), weights.double(), values.double()
    )
    assert fine.dtype == torch.float32
    assert_close(fine, expected[0], "float32")

    def plain(w, v):
        attention = torch.softmax(q @ k.transpose(-1, -2) / 4, -1)[:, :, 4:, 4:]
        return (w[:, :, None, None] * attention).mean(1) @ v

    halves = with_gradients(plain, weights, values)
    for actual, half, exact in zip((fine, *gradients), halves, expected, strict=True):
        assert (actual - exact).abs().max() <= 2 * (half - exact).abs().max()
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def packed_inputs(backend, tokens, patches, maps=4, dim=16, channels=3):
    generator = torch.Generator().manual_seed(1)
    options = {"dtype": exact_dtype(backend), "device": home(backend)}
    shapes = [(maps, sum(tokens), dim)] * 2 + [(len(tokens), maps), (sum(patches), channels)]
    q, k, weights, values = (torch.randn(s, generator=generator).to(**options) for s in shapes)
    parts = zip(q.split(list(tokens), 1), k.split(list(tokens), 1), strict=True)
    lse = torch.cat([q[:, :0, 0], *(literal_lse(*part).to(q.dtype) for part in parts)], 1)
    return q, k, lse, weights, values


@pytest.mark.parametrize(
    ("tokens", "patches"),
    [([9, 50, 6], [7, 41, 6]), ([5, 3, 40], [5, 0, 33]), ([1], [1])],
)
def test_packed_batch_equals_its_images(tokens, patches, backend):
    q, k, lse, weights, values = packed_inputs(backend, tokens, patches)

    def packed(w, v):
        sizes = {"tokens": tokens, "patches": patches}
        return fuse_heads_packed(q, k, lse, w, v, **sizes, backend=backend)

    def one_by_one(w, v):
        images = zip(q.split(tokens, 1), k.split(tokens, 1), w, v.split(patches), strict=True)
        return torch.cat(
            [
                literal_fusion(a[None], b[None], c[None], d[None])[0]
                for a, b, c, d in images
                if len(d)
            ]
        )

    actual = with_gradients(packed, weights, values)
    assert_all_close(actual, with_gradients(one_by_one, weights, values), tolerance_row(backend))


def test_no_image(backend):
    tensors = packed_inputs(backend, [], [])
    assert fuse_heads_packed(*tensors, tokens=[], patches=[], backend=backend).shape == (0, 3)
    dense = fuse_heads(*(x[:0] for x in inputs(1, 2, 1, 5, 8, 3, backend)), backend=backend)
    assert dense.shape == (0, 5, 3)


def test_twice_is_the_same_bits(backend):
    q, k, lse, weights, values = inputs(2, 3, 4, 40, 16, 3, backend)
    first, second = (
        with_gradients(lambda w, v: fuse_heads(q, k, lse, w, v, backend=backend), weights, values)
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_torch_compile_takes_it_whole(backend):
    q, k, lse, weights, values = inputs(2, 3, 4, 37, 16, 3, backend)

    def fine(w, v):
        return 2 * fuse_heads(q, k, lse, w.sigmoid(), v, backend=backend)

    compiled = torch.compile(fine, fullgraph=True, backend="aot_eager")
    actual = with_gradients(compiled, weights, values)
    assert_all_close(actual, with_gradients(fine, weights, values), tolerance_row(backend))


def test_definition_has_exact_gradients():
    q, k, lse, weights, values = inputs(2, 3, 4, 7, 8, 2, "torch")
    leaves = (weights.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, v: fuse_heads(q, k, lse, w, v), leaves)


def test_torch_backend_does_not_depend_on_the_chunk(monkeypatch):
    tensors = inputs(2, 3, 4, 37, 16, 3, "torch")
    whole = fuse_heads(*tensors, backend="torch")
    monkeypatch.setattr(import_module("weaktr.ops.attention_maps"), "CHUNK_BYTES", 1)
    assert_close(fuse_heads(*tensors, backend="torch"), whole, "float64")


def test_mean_of_the_fine_cam_needs_only_the_statistics():
    """Fine logit and its gradient in w from class rows and column means alone."""
    batch, heads, classes, patches, dim = 2, 5, 4, 30, 8
    q, k = attention_inputs(batch, heads, classes, patches, dim)
    coarse = torch.rand(batch, classes, patches, dtype=torch.float64)
    weights = torch.rand(batch, heads, dtype=torch.float64, requires_grad=True)

    attention = (weights[:, :, None, None] * literal(q, k)).mean(1)
    cross, patch = attention[:, :classes, classes:], attention[:, classes:, classes:]
    expected = torch.einsum("bij,bcj->bci", patch, cross * coarse).mean(-1)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), weights)

    stats = head_stats(q, k, num_classes=classes, num_patches=patches)
    cross = torch.einsum("bm,bmcj->bcj", weights, stats.class_rows) / heads
    columns = torch.einsum("bm,bmj->bj", weights, stats.column_means) / heads
    cheap = torch.einsum("bj,bcj,bcj->bc", columns, cross, coarse)
    (cheap_grad,) = torch.autograd.grad(cheap.square().sum(), weights)
    assert_close(cheap, expected, "float64")
    assert_close(cheap_grad, expected_grad, "float64")


def test_wrong_shapes_are_named():
    q, k, lse, weights, values = inputs(2, 3, 4, 37, 16, 1, "torch")
    with pytest.raises(ValueError, match=r"weights: expected shape \(2, 3\), got \(2, 2\)"):
        fuse_heads(q, k, lse, weights[:, 1:], values)
    with pytest.raises(ValueError, match=r"lse: expected shape"):
        fuse_heads(q, k, lse[:, :, 1:], weights, values)
    with pytest.raises(ValueError, match=r"values: expected \[2, P, C'\]"):
        fuse_heads(q, k, lse, weights, values[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [9, 50]}, r"patches: expected one number per image.* \[9, 50\], got"),
        ({"patches": [7, 51, 6]}, r"patches: expected .* from 0 to its number of tokens"),
        ({"tokens": [9, 50, 7]}, r"tokens: expected a sum of ΣN = 65, got 66"),
        ({"patches": [7, 40, 6]}, r"values: expected \[53, C'\], got \(54, 3\)"),
    ],
)
def test_wrong_packing_is_named(changes, message):
    sizes = {"tokens": [9, 50, 6], "patches": [7, 41, 6]}
    tensors = packed_inputs("torch", **sizes)
    with pytest.raises(ValueError, match=message):
        fuse_heads_packed(*tensors, **(sizes | changes))


# ---- Triton alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (torch.bfloat16, 72),
        (torch.float32, 24),
        pytest.param(torch.bfloat16, 24, marks=pytest.mark.rare),
        pytest.param(torch.float32, 72, marks=pytest.mark.rare),
    ],
)
def test_every_configuration_gives_the_same(kernels, dtype, width, monkeypatch):
    q, k, lse, weights, values = inputs(1, 2, 1, 71, width, 3, "triton", dtype=dtype)
    for config in (*kernels.spread_configs(q, False), *kernels.spread_configs(q, True)):
        monkeypatch.setattr(kernels, "spread_configs", lambda *_, config=config: (config,))
        assert_equals_literal(q, k, lse, weights, values, "triton")
    for config in kernels.WEIGHTS_CONFIGS:
        monkeypatch.setattr(kernels, "WEIGHTS_CONFIGS", (config,))
        assert_equals_literal(q, k, lse, weights, values, "triton")


@pytest.mark.parametrize("patches", [[41], [41, 3, 70]])
def test_programs_share_the_maps(kernels, patches):
    """More maps than `LEAST_MAPS` for each of two programs, and a last share that is smaller."""
    maps = 2 * kernels.LEAST_MAPS + 1
    assert kernels.splits_of(maps, 1, 4) == 2
    tokens = [count + 2 for count in patches]
    q, k, lse, weights, values = packed_inputs("triton", tokens, patches, maps=maps)
    fine = fuse_heads_packed(
        q, k, lse, weights, values, tokens=tokens, patches=patches, backend="triton"
    )
    images = zip(
        q.split(tokens, 1), k.split(tokens, 1), weights, values.split(patches), strict=True
    )
    expected = [literal_fusion(*(x[None] for x in image))[0] for image in images]
    assert_close(fine, torch.cat(expected), "float32")


def test_operator_is_for_gradients_alone(kernels, monkeypatch):
    q, k, lse, weights, values = inputs(1, 2, 1, 9, 16, 3, "triton")
    fine = fuse_heads(q, k, lse, weights, values, backend="triton")
    monkeypatch.setattr(kernels, "fuse_op", None)
    assert torch.equal(fuse_heads(q, k, lse, weights, values, backend="triton"), fine)
    weights.requires_grad_()
    with torch.no_grad():
        assert torch.equal(fuse_heads(q, k, lse, weights, values, backend="triton"), fine)
    with pytest.raises(TypeError, match="not callable"):
        fuse_heads(q, k, lse, weights, values, backend="triton")


@pytest.mark.parametrize("packed", [False, True])
def test_operators_are_registered_as_torch_wants_them(kernels, packed):
    if packed:
        sizes = [[9, 5], [7, 5]]
        q, k, lse, weights, values = packed_inputs("triton", *sizes)
        maps, values = [q[None], k[None], lse[None]], values[None]
    else:
        sizes = [None, None]
        *maps, weights, values = inputs(1, 2, 1, 5, 16, 3, "triton")
    leaves = (weights.requires_grad_(), values.requires_grad_())
    torch.library.opcheck(kernels.fuse_op, (*maps, *leaves, 0.25, *sizes))
    gradient, *given = (x.detach() for x in (values, *maps, *leaves))
    for needed in ([True, True], [False, True], [True, False]):
        torch.library.opcheck(kernels.fuse_backward_op, (gradient, needed, *given, 0.25, *sizes))


def tf32(x):
    """Rounded to the 11 bits that tensor cores multiply."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def products_in_tf32(x, y):
    """x yᵀ of tf32, and in tf32x3: without the product of what tf32 drops of both."""
    y = y.transpose(-1, -2)
    kept_x, kept_y = tf32(x), tf32(y)
    kept = kept_x @ kept_y
    return kept, tf32(x - kept_x) @ kept_y + kept_x @ tf32(y - kept_y) + kept


def test_three_products_in_tf32_are_as_exact_as_float32():
    """Logits of order 10, as of trained transformers; errors are shares of the largest entry."""
    generator = torch.Generator().manual_seed(0)
    q, k = 1.8 * torch.randn(2, 6, 300, 64, generator=generator)
    weights = torch.rand(6, 1, 1, generator=generator)
    lse = literal_lse(q[None], k[None])[0, :, :, None]

    def fused_map(products):
        return (weights * (products.double() / 8 - lse).exp()).mean(0)

    exact = fused_map(q.double() @ k.double().transpose(1, 2))
    once, thrice = (fused_map(x) / exact.max() for x in products_in_tf32(q, k))
    assert_close(thrice, exact / exact.max(), "float32")
    in_float32 = fused_map(q @ k.transpose(1, 2)) / exact.max()
    error = (in_float32 - exact / exact.max()).abs().max()
    assert (thrice - exact / exact.max()).abs().max() < 3 * error
    assert (once - exact / exact.max()).abs().max() > 100 * error


def test_float32_is_multiplied_as_torch_is_allowed_to(monkeypatch):
    common = pytest.importorskip("weaktr.kernels.common", exc_type=ImportError)
    for allowed, precision in (("ieee", "tf32x3"), ("tf32", "tf32")):
        matmul = SimpleNamespace(fp32_precision=allowed)
        monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
        assert common.dot_precision(torch.float32) == precision


def test_float32_values_of_half_precision_maps_are_multiplied_as_float32(kernels, monkeypatch):
    """Which the interpreter, exact in any case, does not show."""
    q, k, lse, weights, values = inputs(1, 2, 3, 9, 16, 1, "triton", dtype=torch.bfloat16)
    precisions, launch = [], kernels.launch

    def note(kernel, *arguments, **options):
        if kernel is kernels.weights_kernel:
            precisions.append(options["VALUE_PRECISION"])
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", note)
    weights, values = weights.float().requires_grad_(), values.float()
    fuse_heads(q, k, lse.float(), weights, values, backend="triton").sum().backward()
    assert precisions == ["tf32x3"]


def test_what_kernels_do_not_take_is_refused(kernels):
    q, k, lse, weights, values = inputs(1, 2, 3, 9, 16, 1, "triton")
    with pytest.raises(BackendUnavailable, match=r"got torch\.float64"):
        fuse_heads(q, k, lse, weights, values.double(), backend="triton")


def test_auto_takes_triton_for_cuda_tensors_only(kernels):
    pick, facts = OPS[OP].pick, {"dtypes": (torch.float32,), "head_dim": 64}
    assert pick("cuda", **facts) is kernels.fuse_heads_triton
    assert pick("cpu", **facts) is not kernels.fuse_heads_triton
    wide = facts | {"dtypes": (torch.float64,)}
    assert pick("cuda", **wide).__name__ == "fuse_heads_torch"
