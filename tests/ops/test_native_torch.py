"""The compiled ops on torch's threads, and without them; torch's memory."""

from __future__ import annotations

import pytest
import torch

native = pytest.importorskip("weaktr._native", exc_type=ImportError)
native_torch = pytest.importorskip("weaktr.ops.native", exc_type=ImportError)


@pytest.fixture
def openmp():
    """The address in use, put back at the end."""
    address = native_torch.openmp_of_torch()
    yield address
    native.use_openmp(address)


def attention(threads):
    x = torch.linspace(-2, 2, 2 * 3 * 300 * 8).view(2, 3, 300, 8).numpy()
    return torch.from_numpy(native.attention_cpu(x, x, x, 0.4, 0, 0, threads)[0])


def test_own_threads_give_the_same(openmp):
    expected = attention(1)
    for address in (openmp, 0):
        native.use_openmp(address)
        for threads in (2, 7):
            assert torch.equal(attention(threads), expected)


@pytest.mark.skipif(
    "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[-1],
    reason="this torch has no OpenMP",
)
def test_the_runtime_of_torch_is_found(openmp):
    assert openmp


def test_a_torch_without_openmp_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert native_torch.openmp_of_torch() == 0
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cpu.so").write_bytes(b"no library")
    assert native_torch.openmp_of_torch() == 0


def test_rows_are_copied_only_where_they_are_torn():
    x = torch.zeros(3, 4, 5)
    for whole in (x, x[:, ::2], x.transpose(0, 1)):
        assert native_torch.with_whole_rows(whole) is whole
    assert native_torch.with_whole_rows(x.mT).is_contiguous()
