"""Layers of a transformer block that keep less for the gradient on a CPU.

The outputs of a layer norm and of an activation are as large as their inputs and cheap to compute
again, so only the inputs are kept: for each token of width D before the attention D numbers instead
of 2D, and in the MLP D + 4D instead of 2D + 8D (2D + 12D with dropout, of which a byte for each
hidden number is kept). Where new memory is slow, this makes up for the second computation: a
training step of DeiT-S takes the same time with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


def mlp_of_norm(mlp: Any, norm: Any, tokens: Tensor) -> Tensor:
    """``mlp(norm(tokens))``: [B, N, D] -> [B, N, D].

    Args:
        mlp: timm's `Mlp` with GELU, or any other module, which is then simply called.
        norm: its layer norm.
        tokens: [B, N, D].
    """
    if not (_saves_memory(norm, tokens) and _is_plain(mlp)):
        out: Tensor = mlp(norm(tokens))
        return out
    layers = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    dropout = mlp.drop1.p if mlp.training else 0.0
    kinds = (mlp.act.approximate, dropout, norm.eps)
    out = mlp.drop2(_MlpOf.apply(*kinds, tokens, norm.weight, norm.bias, *layers))
    return out


def linear_of_norm(norm: Any, linear: Any, tokens: Tensor) -> Tensor:
    """``linear(norm(tokens))``: [B, N, D] -> [B, N, E].

    Args:
        norm: a layer norm.
        linear: `nn.Linear`, or any other module, which is then simply called.
        tokens: [B, N, D].
    """
    if not (_saves_memory(norm, tokens) and type(linear) is nn.Linear):
        out: Tensor = linear(norm(tokens))
        return out
    out = _LinearOf.apply(norm.eps, tokens, norm.weight, norm.bias, linear.weight, linear.bias)
    return out


def _saves_memory(norm: nn.Module, tokens: Tensor) -> bool:
    """Whether it is a plain layer norm, and the tokens, on a CPU, are about to be trained on."""
    return (
        torch.is_grad_enabled()
        and tokens.device.type == "cpu"
        and tokens.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()  # the compiler chooses better what to keep
        and type(norm) in (nn.LayerNorm, LayerNorm)
    )


def _is_plain(mlp: Any) -> bool:
    """Whether it is two linear layers with nothing but GELU and dropout between them."""
    return (
        type(mlp) is Mlp
        and type(mlp.fc1) is type(mlp.fc2) is nn.Linear
        and type(mlp.act) is nn.GELU
        and type(mlp.drop1) is nn.Dropout
        and isinstance(mlp.norm, nn.Identity)
    )


class _LinearOf(torch.autograd.Function):
    """`linear_of_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        eps: float,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, E]."""
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, scale, shift, mean, rstd, weight)
        return F.linear(normed, weight, bias)

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        """The norm is computed once more."""
        *norm, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        gradient = rows(gradients[0])
        normed = rows(norm_of(norm, ctx.eps)).to(gradient.dtype)
        of_layer = parameter_gradients(gradient, normed, needs[3:])
        del normed
        of_normed = gradient @ weight.to(gradient.dtype) if any(needs[:3]) else None
        return None, *norm_gradients(of_normed, norm, needs[:3]), *of_layer


class _MlpOf(torch.autograd.Function):
    """`mlp_of_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        approximate: str,
        dropout: float,
        eps: float,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        hidden = F.linear(normed, weight1, bias1)
        kept = torch.empty_like(hidden).bernoulli_(1 - dropout).bool() if dropout else None
        ctx.eps, ctx.approximate, ctx.dropout = eps, approximate, dropout
        ctx.save_for_backward(x, scale, shift, mean, rstd, hidden, kept, weight1, weight2)
        activated = F.gelu(hidden, approximate=approximate)
        return F.linear(dropped_(activated, kept, dropout), weight2, bias2)

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        """Norm and activation are computed once more.

        The memory of the activation becomes that of its gradient, and then of what is before it.
        """
        *norm, hidden, kept, weight1, weight2 = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        gradient, hidden = rows(gradients[0]), rows(hidden)
        kept = None if kept is None else rows(kept)
        wide = dropped_(F.gelu(hidden, approximate=ctx.approximate), kept, ctx.dropout)
        of_second = parameter_gradients(gradient, wide, needs[5:7])
        of_normed: Tensor | None = None
        of_first: list[Tensor | None] = [None, None]
        if any(needs[:5]):
            torch.mm(gradient, weight2.to(wide.dtype), out=wide)
            dropped_(wide, kept, ctx.dropout)
            aten.gelu_backward.grad_input(
                wide, hidden, approximate=ctx.approximate, grad_input=wide
            )
            of_first = parameter_gradients(
                wide, rows(norm_of(norm, ctx.eps)).to(wide.dtype), needs[3:5]
            )
        if any(needs[:3]):
            of_normed = wide @ weight1.to(wide.dtype)
        del wide
        of_norm = norm_gradients(of_normed, norm, needs[:3])
        return None, None, None, *of_norm, *of_first, *of_second


def dropped_(x: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    """`x` in its place, without what dropout does not keep; None = it keeps everything."""
    return x if kept is None else x.mul_(kept).mul_(1 / (1 - dropout))


def rows(x: Tensor) -> Tensor:
    """[B, N, D] -> [B · N, D]."""
    return x.flatten(0, -2)


def parameter_gradients(gradient: Tensor, x: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Of a linear layer's weight and bias, each None where not `needed`.

    Args:
        gradient: [M, out] in its output.
        x: [M, in] its input.
        needed: of weight and bias.

    Returns:
        In the type of both; autograd converts them to that of the parameters.
    """
    return [gradient.T @ x if needed[0] else None, gradient.sum(0) if needed[1] else None]


def norm_of(norm: Sequence[Any], eps: float) -> Tensor:
    """The output [B, N, D] of a layer norm: input, scale, shift, means and inverse deviations."""
    x, scale, shift, *_ = norm
    return F.layer_norm(x, x.shape[-1:], scale, shift, eps)


def norm_gradients(
    gradient: Tensor | None, norm: Sequence[Any], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Of a layer norm's input, scale and shift, each None where not `needed`.

    Args:
        gradient: [M, D] in its output; None = none are needed.
        norm: see `norm_of`.
        needed: of input, scale and shift.
    """
    if gradient is None:
        return [None, None, None]
    x, scale, shift, mean, rstd = norm
    gradient = gradient.view(x.shape).to(x.dtype)
    gradients: list[Tensor | None] = [
        *aten.native_layer_norm_backward(
            gradient, x, x.shape[-1:], mean, rstd, scale, shift, [*needed]
        )
    ]
    return gradients
