"""The C++ code of `fuse_heads`: every instruction set, odd shapes, memory as it lies, threads."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.tolerances import assert_close
from weaktr.ops import fuse_heads
from weaktr.ops.registry import BackendUnavailable

native = pytest.importorskip("weaktr._native", exc_type=ImportError)

#: M, P, d, C': around the 64 queries and 6 keys of a tile, widths of no power of two.
SHAPES = [(1, 1, 1, 1), (3, 5, 3, 2), (2, 6, 8, 1), (7, 63, 24, 5), (2, 64, 16, 3), (3, 131, 72, 2)]
ISAS = native.isa_levels()
HALF = pytest.mark.skipif(
    not native.has_bfloat16(), reason="this processor does not multiply bfloat16"
)


def inputs(maps, patches, width, channels):
    """q, k, lse, weights, values in float64; lse over more keys than the patches."""
    generator = torch.Generator().manual_seed(patches)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q = numbers(maps, patches, width) / width**0.5
    k = numbers(maps, patches, width)
    lse = (q @ k.mT).logsumexp(-1) + 0.3
    return q, k, lse, numbers(maps), numbers(patches, channels)


def expected(q, k, lse, weights, values, scale=1.0):
    maps = (scale * (q @ k.mT) - lse[..., None]).exp()
    return (weights[:, None, None] * maps).mean(0) @ values


def run(tensors, scale=1.0, threads=1, isa="auto"):
    arrays = (x.float().numpy() if isinstance(x, torch.Tensor) else x for x in tensors)
    return torch.from_numpy(native.fuse_heads_cpu(*arrays, scale, threads, isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape, isa):
    tensors = inputs(*shape)
    q, k, lse, *rest = tensors
    assert_close(run(tensors, isa=isa), expected(*tensors), "float32")
    halved = (q, k, lse + 1, *rest)
    assert_close(run(halved, 0.5, isa=isa), expected(*halved, scale=0.5), "float32")


@pytest.mark.parametrize("isa", ISAS)
def test_arrays_are_read_where_they_lie(isa):
    maps, patches, width = 4, 37, 12
    qkv = torch.randn(patches + 3, 3, maps, width)  # as a ViT's layer leaves them, after 3 classes
    q, k, _ = (x.transpose(0, 1)[:, 3:] for x in qkv.unbind(1))
    lse = (q @ k.mT).logsumexp(-1).T.contiguous().T
    *_, weights, values = inputs(maps, patches, width, 3)
    tensors = (q, k, lse, weights, values)
    assert_close(run(tensors, isa=isa), expected(*(x.double() for x in tensors)), "float32")


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_the_threads(isa):
    tensors = inputs(5, 200, 16, 3)
    alone = run(tensors, threads=1, isa=isa)
    for threads in (2, 3, 50):
        assert torch.equal(run(tensors, threads=threads, isa=isa), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("which", range(5))
def test_nan_is_not_lost(which, isa):
    tensors = [x.clone() for x in inputs(3, 70, 8, 2)]
    tensors[which].view(-1)[-1] = float("nan")
    actual, wanted = run(tensors, isa=isa), expected(*tensors)
    assert torch.equal(actual.isnan(), wanted.isnan())
    assert wanted.isnan().any()


@pytest.mark.parametrize("isa", ISAS)
def test_exponents_of_any_size(isa):
    """Far below the smallest number: nothing is added. Far above the largest: infinity."""
    q = torch.tensor([[[1.0], [1.0]]])
    k = torch.tensor([[[-1e4], [-60.0]]])
    ones, values = torch.ones(1), torch.ones(2, 1)
    fine = run((q, k, torch.zeros(1, 2), ones, values), isa=isa)
    assert_close(fine.log(), torch.full((2, 1), -60.0), "float32")
    assert run((q, -k, torch.zeros(1, 2), ones, values), isa=isa).isposinf().all()


def test_torch_threads_are_used_and_nothing_else_changes():
    q, k, lse, weights, values = (x.float() for x in inputs(5, 200, 16, 3))
    call = (q[None], k[None], lse[None], weights[None], values[None])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(fuse_heads(*call, scale=1.0, backend="cpu"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


#: Maps of 9000 patches, 324 MB each, in an address space with room for 64 MiB more.
SCRIPT = """
import resource
import numpy as np
from weaktr import _native

q = np.ones((2, 9000, 8), np.float32)
lse, weights, values = np.zeros((2, 9000), np.float32), np.ones(2, np.float32), q[0, :, :3].copy()
lines = open("/proc/self/status").read().splitlines()
size = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), size + (64 << 20)))
print(_native.fuse_heads_cpu(q, q, lse, weights, values, -1.0, 2).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_no_map_is_in_memory():
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert process.stdout == "(9000, 3)\n", process.stderr


def test_registered_as_torch_wants_it():
    from weaktr.ops.fuse_heads.cpu import fuse_op

    tensors = (x.float() for x in inputs(2, 5, 8, 3))
    torch.library.opcheck(fuse_op, (*tensors, 0.25))


def test_float64_and_other_devices_are_refused():
    q, k, lse, weights, values = (x[None] for x in inputs(2, 5, 8, 3))
    with pytest.raises(
        BackendUnavailable, match="it takes float16, bfloat16, float32, got float64"
    ):
        fuse_heads(q, k, lse, weights, values, backend="cpu")
    assert fuse_heads(q, k, lse, weights, values).dtype == torch.float64
    tensors = (x.float().to("meta") for x in (q, k, lse, weights, values))
    with pytest.raises(BackendUnavailable, match="it runs on CPU tensors, got meta"):
        fuse_heads(*tensors, backend="cpu")


@HALF
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] % 2 == 0])
def test_bfloat16_equals_the_formula(shape):
    q, k, lse, weights, values = inputs(*shape)
    q, k = q.bfloat16(), k.bfloat16()
    exact = expected(q.double(), k.double(), lse, weights, values)
    arrays = [x.view(torch.uint16).numpy() for x in (q, k)]
    arrays += [x.float().numpy() for x in (lse, weights, values)]
    actual = torch.from_numpy(native.fuse_heads_cpu_bfloat16(*arrays, 1.0, 1))
    assert_close(actual, exact, "float32")  # products of bfloat16 are exact, sums are float32
    for threads in (2, 50):
        again = torch.from_numpy(native.fuse_heads_cpu_bfloat16(*arrays, 1.0, threads))
        assert torch.equal(again, actual)


@HALF
@pytest.mark.parametrize("place", ["as a layer leaves them", "at odd places", "columns"])
def test_bfloat16_is_read_where_it_lies(place):
    qkv = torch.randn(2, 3, 40, 3 * 8 + 1).bfloat16()
    q, k = {
        "as a layer leaves them": lambda: qkv[..., :24].unflatten(3, (3, 8)).unbind(3)[:2],
        "at odd places": lambda: (qkv[..., 1:9], qkv[..., 9:17]),
        "columns": lambda: qkv[..., :40, :16].mT.contiguous().mT.chunk(2, -1),
    }[place]()
    lse, weights, values = torch.rand(2, 3, 40), torch.rand(2, 3), torch.rand(2, 35, 4)
    actual = fuse_heads(q, k, lse, weights, values, backend="cpu")
    assert_close(actual, fuse_heads(q, k, lse, weights, values, backend="torch"), "float32")


@HALF
def test_gradients_of_bfloat16_are_the_definitions():
    q, k = torch.randn(2, 1, 2, 9, 8).bfloat16()
    gradients = []
    for backend in ("cpu", "torch"):
        weights, values = torch.ones(1, 2, requires_grad=True), torch.ones(1, 7, 3).requires_grad_()
        fuse_heads(q, k, torch.ones(1, 2, 9), weights, values, backend=backend).sum().backward()
        gradients.append((weights.grad, values.grad))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "float32")


@HALF
def test_wrong_arrays_of_bfloat16_are_named():
    tensors = [x.float().numpy() for x in inputs(2, 5, 8, 3)]
    wide = np.zeros((2, 5, 9), np.uint16)
    odd, torn = wide[..., :7], wide[..., :8]
    for array, told in ((odd, "even d in bfloat16, got 7"), (torn, "multiples of four bytes")):
        with pytest.raises(ValueError, match=told):
            native.fuse_heads_cpu_bfloat16(array, array, *tensors[2:], 1.0, 1)


WRONG = [
    (0, np.zeros((5, 8), np.float32), r"q: expected \[M, P, d\], got 2 axes"),
    (1, np.zeros((2, 6, 8), np.float32), r"k: expected \[2, 5, 8\], got \(2, 6, 8\)"),
    (1, np.zeros((2, 8, 5), np.float32).transpose(0, 2, 1), "k: expected the numbers of a row"),
    (2, np.zeros((2, 4), np.float32), r"lse: expected \[2, 5\]"),
    (3, np.zeros(3, np.float32), r"weights: expected \[2\]"),
    (4, np.zeros(5, np.float32), r"values: expected \[P, C'\], got 1 axes"),
    (4, np.zeros((6, 3), np.float32), r"values: expected \[5, 3\]"),
]


@pytest.mark.parametrize(("which", "array", "message"), WRONG)
def test_wrong_arrays_are_named(which, array, message):
    tensors = list(inputs(2, 5, 8, 3))
    tensors[which] = array
    with pytest.raises(ValueError, match=message):
        run(tensors)


def test_wrong_settings_are_named():
    tensors = inputs(2, 5, 8, 3)
    with pytest.raises(ValueError, match="num_threads: expected at least 1, got 0"):
        run(tensors, threads=0)
    with pytest.raises(ValueError, match="isa: expected auto or one of isa_levels"):
        run(tensors, isa="sse9")
    with pytest.raises(TypeError):
        native.fuse_heads_cpu(*(x.numpy() for x in tensors), 1.0, 1)  # float64
