"""Models made ready for inference on a GPU: the same results."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.test_onednn import BACKBONES, segmenter
from weaktr.models.inference import with_weights_in


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_weights_kept_in_autocasts_dtype_give_the_same(backbone):
    model = segmenter(backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 48, 64)
    twin = with_weights_in(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (m.patch_outputs(images)[0] for m in (model, twin))
    assert torch.equal(actual, expected)
    layers = [m for m in twin.modules() if isinstance(m, nn.Linear)]
    assert layers and all(p.dtype == torch.bfloat16 for m in layers for p in m.parameters())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
