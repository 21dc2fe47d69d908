"""Models without memory have the shapes of others, and take no time to fill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import small
from weaktr.models.shapes import without_memory

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3}
MODELS = {
    "stage 1": lambda: small.cam_model(
        "deit_small_patch16_224", 3, reduction=1, backbone_args=TINY
    ),
    "stage 2": lambda: small.segmenter("vit_small_patch14_reg4_dinov2", 4, backbone_args=TINY),
    "rotary": lambda: small.segmenter("eva02_small_patch14_224", 4, backbone_args=TINY),
}


class Called(TorchDispatchMode):
    """The names of all that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_the_shapes_of_others_and_nothing_is_filled(make):
    with without_memory(), Called() as called:
        model = make()
    assert not {"uniform_", "normal_", "erfinv_", "clamp_"} & called.names
    made = make()
    for named in ("named_parameters", "named_buffers"):
        expected, found = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in getattr(one, named)()}
            for one in (made, model)
        )
        assert found == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_tensors_with_memory_are_filled():
    with without_memory():
        filled = torch.empty(3, device="cpu").fill_(2.0).mul_(2)
    assert filled.tolist() == [4.0, 4.0, 4.0]
