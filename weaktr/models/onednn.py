"""A model's linear layers in oneDNN's own weight layout: the same sums, faster on CPUs.

MKL takes the plain layout and rearranges the weight at every call; oneDNN rearranges it once. The
GELU of an MLP is computed on each tile of results while it is still in the cache.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from timm.layers import GELU, Mlp
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class OneDnnLinear(nn.Module):
    """``activation(x Wᵀ + b)`` for inference on the CPU.

    Args:
        linear: whose weights are used; they are shared where oneDNN does not rearrange them.
        tokens: of a forward pass, which the layout is chosen for; any other number works too.
        dtype: to compute in, float32 or bfloat16; inputs are converted to it, as by autocast.
        activation: "none", or "gelu" (the exact one, with erf).
        bias: [out] in place of the layer's own.
    """

    def __init__(
        self,
        linear: nn.Linear,
        tokens: int,
        dtype: torch.dtype = torch.float32,
        activation: str = "none",
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        weight = linear.weight.detach().to(dtype)
        self.rearranged: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
        bias = linear.bias if bias is None else bias
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.rearranged, self.bias, self.activation, [], "none"
        )
        return out


def has_onednn(model: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN's layers, the CPU computes them in `dtype`, and the model is
    float32 on the CPU: without AVX-512 or AVX-NE-CONVERT oneDNN refuses bfloat16."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    )


def shared_copy(model: Model) -> Model:
    """A copy of a model's modules around the very same parameters and buffers."""
    tensors: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)


@torch.no_grad()
def with_onednn_layers(model: Model, tokens: int, dtype: torch.dtype = torch.float32) -> Model:
    """A twin of a model for inference, with oneDNN's linear layers; everything else is shared.

    Args:
        model: in eval mode; not changed.
        tokens: of a forward pass.
        dtype: of its linear layers; use bfloat16 under autocast, which handles the other layers.

    Returns:
        The twin, or `model` itself where `has_onednn` is false.
    """
    if not has_onednn(model, dtype):
        return model
    twin = shared_copy(model)
    module: Any
    for module in list(twin.modules()):
        if getattr(module, "q_bias", None) is not None:  # EVA-02: the bias is stored in parts
            bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
            module.qkv = OneDnnLinear(module.qkv, tokens, dtype, bias=bias)
            module.q_bias = module.v_bias = None
        if _has_exact_gelu(module):
            module.fc1 = OneDnnLinear(module.fc1, tokens, dtype, "gelu")
            module.act = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, OneDnnLinear(child, tokens, dtype))
    return twin


def _has_exact_gelu(module: nn.Module) -> bool:
    """Whether this is an MLP whose first layer is linear with the exact GELU after it."""
    if not (isinstance(module, Mlp) and isinstance(module.fc1, nn.Linear)):
        return False
    act = module.act
    return isinstance(act, GELU) or (isinstance(act, nn.GELU) and act.approximate == "none")
