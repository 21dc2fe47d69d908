"""A model made ready for inference: linear layers in the form that its device computes fastest."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from weaktr.config import Amp
from weaktr.models.onednn import shared_copy, with_onednn_layers
from weaktr.models.precision import amp_type

Model = TypeVar("Model", bound=nn.Module)


def for_inference(model: Model, amp: Amp, tokens: int) -> Model:
    """The same weights for inference: on a CPU in oneDNN's layout, where that is possible.

    On a GPU, under autocast, linear layers are kept in its dtype (`with_weights_in`).

    Args:
        model: in eval mode, on its device; not changed.
        amp: of the forward passes.
        tokens: of a forward pass.
    """
    device = next(model.parameters()).device
    dtype = amp_type(amp, device) or torch.float32
    if device.type != "cpu":
        return model if dtype == torch.float32 else with_weights_in(model, dtype)
    return model if dtype == torch.float16 else with_onednn_layers(model, tokens, dtype)


@torch.no_grad()
def with_weights_in(model: Model, dtype: torch.dtype) -> Model:
    """A twin whose linear layers hold their weights as autocast to `dtype` would convert them.

    Autocast does that in every forward pass, one small kernel a tensor. The results are the same.

    Args:
        model: not changed; everything but those weights is shared.
        dtype: float16 or bfloat16.
    """
    twin = shared_copy(model)
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    return twin
