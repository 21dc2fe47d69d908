"""What is uninitialised is NaN in tests, but not in what is traced."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("weaktr_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("weaktr_tests::doubled_backward", mutates_args=())
def doubled_backward(gradient: Tensor, unread: Tensor) -> Tensor:
    return 2 * gradient


@doubled_backward.register_fake
def _(gradient: Tensor, unread: Tensor) -> Tensor:
    return torch.empty_like(gradient)


doubled.register_autograd(
    lambda ctx, gradient: doubled_backward(gradient, gradient.new_empty((), dtype=torch.int64)),
    setup_context=lambda ctx, inputs, output: None,
)


def test_memory_that_nobody_wrote_is_not_a_number():
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(2).isnan().all()


def test_an_empty_tensor_in_a_traced_gradient_is_left_empty():
    torch.compiler.reset()
    x = torch.ones(3, requires_grad=True)
    by_parts = {"backend": "aot_eager_decomp_partition", "fullgraph": True}  # as by a compiler
    torch.compile(lambda x: doubled(x).sum(), **by_parts)(x).backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
