"""The CUDA code of `dense_crf`: emulated on the CPU everywhere, and itself where there is a GPU."""

import contextlib
import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.native import emulation as native_emulation
from tests.ops.crf_reference import KERNELS, random_problem
from tests.ops.test_dense_crf import CASES, stored_case
from tests.tolerances import CRF_LABEL_AGREEMENT, assert_close
from weaktr.ops import dense_crf, dense_crf_labels
from weaktr.ops.dense_crf.problem import NORMALIZATIONS, LabelMap, Pairwise, Problem, as_dict
from weaktr.ops.registry import OPS, Backend, report

_native = pytest.importorskip("weaktr._native", reason="the extension is not built")
native = importlib.import_module("weaktr.ops.dense_crf.cpu")

#: (height, width, labels): one pixel, one row, cut tiles, whole tiles, few and many labels.
MIXED = [
    *((1, 1, 2), (1, 37, 21), (17, 33, 5), (16, 32, 1), (20, 19, 81), (33, 15, 255), (5, 7, 32)),
    *((18, 35, 12), (9, 20, 28)),
]


def dense_crf_emulated(problems, *, iterations, num_threads=1, output="marginals", seed=1):
    """A backend of `dense_crf`; `seed`: of the order in which blocks and threads run."""
    dicts = [as_dict(problem, native.as_array) for problem in problems]
    for given, problem in zip(dicts, problems, strict=True):
        if output != "marginals":
            given["argmax"] = np.full(problem.shape, 77, dtype=np.uint8)
            given["confidence"] = np.full(problem.shape, np.nan, dtype=np.float32)
    marginals = native_emulation.load().dense_crf_emulated(dicts, iterations, seed)
    names = {"marginals": (), "labels": ("argmax",), "labels+confidence": ("argmax", "confidence")}
    if output == "marginals":
        return [(torch.from_numpy(array),) for array in marginals]
    return [tuple(torch.from_numpy(given[name]) for name in names[output]) for given in dicts]


@pytest.fixture(autouse=True)
def _emulations(emulation, monkeypatch):
    op = OPS["dense_crf"]
    emulated = Backend("emulated", __name__, auto=False)
    monkeypatch.setitem(OPS, "dense_crf", replace(op, backends=(*op.backends, emulated)))


def mixed_batch():
    problems = [random_problem(*size, seed=i) for i, size in enumerate(MIXED)]
    return [image for image, _ in problems], [unary for _, unary in problems]


# ---- the emulation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_emulation_is_pydensecrfs(name):
    arrays, unary, kernels = stored_case(name)
    marginals = dense_crf(arrays["image"], unary, **kernels, iterations=10, backend="emulated")
    assert (marginals.argmax(0) == arrays["argmax10"]).mean() >= CRF_LABEL_AGREEMENT
    if "Q10" in arrays and arrays["Q10"].dtype == np.float32:
        stored = torch.from_numpy(arrays["Q10"])
        assert_close(torch.from_numpy(marginals).flatten(1), stored, "crf_marginals")


def test_emulated_batch_of_mixed_sizes_and_labels():
    images, unaries = mixed_batch()
    batch_marginals = dense_crf(images, unaries, **KERNELS, backend="emulated")
    for image, unary, marginals in zip(images, unaries, batch_marginals, strict=True):
        expected = torch.from_numpy(dense_crf(image, unary, **KERNELS, backend="torch"))
        assert_close(torch.from_numpy(marginals), expected, "crf_marginals")


def textured_photograph(height, width, seed):
    """A part of a photograph, with noise: uint8 [height, width, 3], many vertices a pixel."""
    whole = stored_case("large_b_coco_cam_L3.npz")[0]["image"]
    part = whole[seed * 20 :, seed * 30 :][:height, :width]
    noise = np.random.default_rng(seed).normal(0, 6, part.shape)
    return (part + noise).clip(0, 255).astype(np.uint8)


def test_emulated_photographs_are_those_of_the_cpu():
    sizes = [(75, 100, 2), (61, 47, 4), (48, 50, 21), (33, 34, 81)]
    images = [textured_photograph(*size[:2], seed) for seed, size in enumerate(sizes)]
    unaries = [random_problem(*size, seed=seed)[1] for seed, size in enumerate(sizes)]
    kernels = {"gaussian": (3, 3), "bilateral": (50, 5, 10)}
    expected = dense_crf(images, unaries, **kernels, backend="cpu")
    together = dense_crf(images, unaries, **kernels, backend="emulated")
    alone = dense_crf(images[1], unaries[1], **kernels, backend="emulated")
    np.testing.assert_array_equal(together[1], alone)
    for actual, wanted in zip(together, expected, strict=True):
        assert_close(torch.from_numpy(actual), torch.from_numpy(wanted), "crf_marginals")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "vector", "matrix"])
def test_emulated_compat_and_normalization(kind, normalization):
    image, unary = random_problem(19, 21, 6)
    rng = np.random.default_rng(1)
    strength = 0.05 if normalization == "none" else 2.0
    compat = {
        "potts": strength,
        "vector": -strength * rng.uniform(0.5, 1.5, 6),
        "matrix": strength * rng.uniform(-1.5, 0.5, (6, 6)),
    }[kind]
    kernels = {
        "gaussian": [((2, 4), compat), (1, strength, "after")],
        "bilateral": [((30, 20), (40, 50, 60), compat), (9, 20, 0.5, "symmetric")],
        "normalization": normalization,
    }
    marginals = dense_crf(image, unary, **kernels, backend="emulated")
    expected = dense_crf(image, unary, **kernels, backend="torch")
    assert_close(torch.from_numpy(marginals), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize("size", [(1, 2), (3, 1), (2, 2), (5, 5), (16, 16), (16, 17), (31, 1)])
def test_emulated_padding(size):
    """The vertices of the padding exist where the number of pixels is no multiple of four."""
    image, unary = random_problem(*size)
    kernels = {"gaussian": (0.7, 3), "bilateral": (3, 120, 3)}
    marginals = dense_crf(image, unary, **kernels, backend="emulated")
    expected = dense_crf(image, unary, **kernels, backend="torch")
    assert_close(torch.from_numpy(marginals), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize(
    "kernels",
    [{}, {"iterations": 0, **KERNELS}, {"gaussian": (3, 2)}, {"bilateral": (9, 9, 2)}],
    ids=["none", "no iterations", "gaussian", "bilateral"],
)
def test_emulated_kernels_left_out(kernels):
    image, unary = random_problem()
    marginals = dense_crf(image, unary, **kernels, backend="emulated")
    expected = dense_crf(image, unary, **kernels, backend="torch")
    assert_close(torch.from_numpy(marginals), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize("zero_unsure", [False, True])
def test_emulated_labels_and_confidence(zero_unsure):
    image, _ = random_problem(23, 35)
    labels = np.random.default_rng(5).integers(0, 4, (23, 35), dtype=np.uint8)
    arguments = {"n_labels": 4, "zero_unsure": zero_unsure, "confidence": True, **KERNELS}
    actual = dense_crf_labels(image, labels, **arguments, backend="emulated")
    expected = dense_crf_labels(image, labels, **arguments, backend="torch")
    assert actual[0].dtype == np.uint8
    assert (actual[0] == expected[0]).mean() >= CRF_LABEL_AGREEMENT
    assert_close(torch.from_numpy(actual[1]), torch.from_numpy(expected[1]), "crf_marginals")


def test_emulated_ties_go_to_the_first_label():
    image, unary = random_problem(num_labels=9)
    problem = as_problem(image, np.zeros_like(unary))
    ((labels,),) = dense_crf_emulated([problem], iterations=2, output="labels")
    assert (labels == 0).all()


def as_problem(image, unary, deviations=(3.0, 3.0), compat=2.0):
    """With one kernel."""
    kernel = Pairwise(deviations, None, torch.full((len(unary),), -compat), "symmetric")
    return Problem(image.shape[:2], torch.from_numpy(image), torch.from_numpy(unary), [kernel])


def test_emulation_does_not_depend_on_the_order():
    """Whatever a GPU does first, runs are equal to the bit."""
    problems = [as_problem(*random_problem(*size), (30.0, 30.0, 9.0, 9.0, 9.0)) for size in MIXED]
    first, *others = (dense_crf_emulated(problems, iterations=3, seed=seed) for seed in range(4))
    for i, (expected,) in enumerate(first):
        assert all(torch.equal(expected, other[i][0]) for other in others)


def test_emulated_label_beyond_the_table_is_not_a_number():
    image, _ = random_problem()
    labels = torch.zeros(6, 9, dtype=torch.uint8)
    labels[2, 3] = 2
    kernels = as_problem(image, np.zeros((3, 6, 9), np.float32)).kernels
    energies = LabelMap(labels, torch.tensor([[0.1, 2.0, 2.0], [2.0, 0.1, 2.0]]))
    problem = Problem((6, 9), torch.from_numpy(image), energies, kernels)
    ((marginals,),) = dense_crf_emulated([problem], iterations=2)
    assert torch.equal(marginals[0].isnan(), labels == 2)


IMAGE, UNARY = random_problem()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (54,)}, r"shape: CUDA takes images \(H, W\).*got \(54,\).*backend 'torch'"),
        ({"shape": (0, 9)}, r"shape: .*at least one pixel, got \(0, 9\)"),
        ({"unary": None}, r"unary: expected unary, or labels and a table"),
        ({"unary": UNARY[:, :5]}, r"unary: expected an aligned C-contiguous array"),
        ({"unary": UNARY.astype(float)}, r"unary: expected an aligned C-contiguous array"),
        ({"unary": UNARY[:, 1:].copy()}, r"unary: expected shape \(3, 6, 9\), got \(3, 5, 9\)"),
        ({"unary": np.zeros((256, 6, 9), np.float32)}, r"labels: expected 1 to 255, got 256"),
        ({"image": IMAGE[:5].copy()}, r"image: expected shape \(6, 9, 3\), got \(5, 9, 3\)"),
    ],
)
def test_what_cuda_does_not_take_is_refused(emulation, changes, message):
    given = {"shape": (6, 9), "image": IMAGE, "unary": UNARY, "kernels": []} | changes
    with pytest.raises(ValueError, match=message):
        emulation.dense_crf_emulated([given], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((2, 54), np.float32)}, r"features: CUDA takes .*backend 'torch'"),
        ({"deviations": (1.0, 2.0, 3.0)}, r"deviations: expected 2 or 5 numbers, got 3"),
        ({"deviations": (1.0, 0.0)}, r"kernel 0: expected positive deviations, got 0"),
        ({"deviations": (1e-7, 1e-7)}, r"kernel 0: .* too wide for CUDA.*larger standard dev"),
        ({"deviations": (1e-3,) * 5}, r"kernel 0: .*63 bits.*larger standard deviations"),
        ({"compat": np.ones(2, np.float32)}, r"compat: expected \[3\] or square.*\(2,\)"),
        ({"compat": np.full(3, np.nan, np.float32)}, r"compat: expected finite"),
        ({"normalization": "both"}, r"normalization: expected symmetric.*got both"),
    ],
)
def test_kernels_that_cuda_does_not_take_are_refused(emulation, changes, message):
    compat = np.full(3, -1.0, np.float32)
    kernel = {"deviations": (3.0, 3.0), "compat": compat, "normalization": "none"} | changes
    given = {"shape": (6, 9), "image": IMAGE, "unary": UNARY, "kernels": [kernel]}
    with pytest.raises(ValueError, match=message):
        emulation.dense_crf_emulated([given], 1)


def test_negative_iterations_are_refused(emulation):
    given = {"shape": (6, 9), "image": IMAGE, "unary": UNARY, "kernels": []}
    with pytest.raises(ValueError, match="iterations: expected 0 or more, got -1"):
        emulation.dense_crf_emulated([given], -1)


# ---- the torch side -----------------------------------------------------------------------------


@pytest.fixture
def native_cuda(emulation, monkeypatch):
    """`weaktr.ops.dense_crf.cuda` with the emulation in CUDA's place, and its calls."""
    calls = []

    def solve(problems, iterations, stream, allocate):
        calls.append((len(problems), stream, allocate(64) != 0))
        emulation.dense_crf_emulated(problems, iterations)

    properties = SimpleNamespace(total_memory=10_000)
    monkeypatch.setattr(_native, "has_cuda", lambda: True, raising=False)
    monkeypatch.setattr(_native, "dense_crf_cuda", solve, raising=False)
    monkeypatch.setattr(
        _native, "dense_crf_cuda_bytes", lambda dicts: [1000] * len(dicts), raising=False
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=42))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.delitem(sys.modules, "weaktr.ops.dense_crf.cuda", raising=False)
    yield importlib.import_module("weaktr.ops.dense_crf.cuda"), calls
    del sys.modules["weaktr.ops.dense_crf.cuda"]


@pytest.mark.parametrize("output", ["marginals", "labels", "labels+confidence"])
def test_torch_side_packs_and_splits(native_cuda, output):
    module, calls = native_cuda
    problems = [as_problem(*random_problem(*size)) for size in MIXED[:3]]
    strided = problems[2].unary.flip(0).permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert not strided.is_contiguous()
    problems[2] = problems[2]._replace(unary=strided)
    labels = torch.arange(54, dtype=torch.uint8).view(6, 9) % 3
    energies = LabelMap(labels, torch.rand(3, 3).T)
    problems.append(as_problem(*random_problem())._replace(unary=energies))
    outputs = [module._empty_outputs(problem, output) for problem in problems]
    module._solve(problems, outputs, 2)
    assert calls == [(2, 42, True), (2, 42, True)]  # a quarter of the memory holds two
    expected = dense_crf_emulated(problems, iterations=2, output=output, seed=0)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(actual.values(), wanted, strict=True))


def test_torch_side_wants_a_gpu(native_cuda):
    module, _ = native_cuda
    assert module.dense_crf_cuda([], iterations=1) == []
    with pytest.raises(ValueError, match="unary: expected on a GPU, got cpu"):
        module.dense_crf_cuda([as_problem(IMAGE, UNARY)], iterations=1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], [(0, 0)]), ([5], [(0, 1)]), ([4, 6, 1, 20, 3], [(0, 2), (2, 3), (3, 4), (4, 5)])],
)
def test_parts_stay_below_the_limit(native_cuda, sizes, expected):
    module, _ = native_cuda
    assert [(part.start, part.stop) for part in module._parts(sizes, 10)] == expected


@pytest.mark.parametrize(
    ("built", "reason"), [(False, "built without CUDA.*WEAKTR_CUDA=ON"), (True, "sees no GPU")]
)
def test_import_says_why_there_is_no_gpu(monkeypatch, built, reason):
    monkeypatch.setattr(_native, "has_cuda", lambda: built, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "weaktr.ops.dense_crf.cuda", raising=False)
    with pytest.raises(ImportError, match=reason):
        importlib.import_module("weaktr.ops.dense_crf.cuda")


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.fixture
def on_gpu():
    """`dense_crf_cuda`, where it runs."""
    (status,) = (s for s in report() if (s.op, s.backend) == ("dense_crf", "cuda"))
    if not status.available:
        pytest.skip(status.reason)
    return importlib.import_module("weaktr.ops.dense_crf.cuda").dense_crf_cuda


def to_gpu(problem):
    return problem._replace(image=problem.image.cuda(), unary=problem.unary.cuda())


def test_gpu_is_the_emulation(on_gpu):
    problems = [as_problem(*random_problem(*size), (30.0, 30.0, 9.0, 9.0, 9.0)) for size in MIXED]
    expected = dense_crf_emulated(problems, iterations=5)
    moved = [to_gpu(problem) for problem in problems]
    actual = on_gpu(moved, iterations=5)
    for (marginals,), (wanted,) in zip(actual, expected, strict=True):
        assert_close(marginals.cpu(), wanted, "crf_marginals")


def test_gpu_gives_the_same_bits_twice(on_gpu):
    problems = [to_gpu(as_problem(*random_problem(200, 300, 21), (40.0, 40.0, 9.0, 9.0, 9.0)))] * 3
    (first,), (second,), (third,) = on_gpu(problems, iterations=10)
    ((alone,),) = on_gpu(problems[:1], iterations=10)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(first, alone)


def test_gpu_works_on_the_current_stream(on_gpu):
    problem = to_gpu(as_problem(*random_problem(64, 64, 4)))
    ((expected,),) = on_gpu([problem], iterations=3)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):  # the second time, memory and kernels are there
            stream.synchronize()
            torch.cuda._sleep(10**8)
            ((marginals,),) = on_gpu([problem._replace(unary=problem.unary + 0)], iterations=3)
            waited = stream.query()
        assert not waited
        assert torch.equal(marginals, expected)


def test_gpu_refuses_the_hosts_memory(on_gpu):
    unary = (UNARY.ctypes.data, UNARY.shape)
    given = {"shape": (6, 9), "image": None, "unary": unary, "kernels": []}
    with pytest.raises(ValueError, match="unary: expected memory of a CUDA device"):
        _native.dense_crf_cuda_bytes([given])
