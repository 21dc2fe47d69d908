"""What a process drops of its part of a batch: what it would drop if it had the whole."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import small
from weaktr.models.dropping import Part, PartDropout, PartDropPath, drop_for

SEGMENTER = {"image_size": 32, "patch_size": 8, "drop_path": 0.3, "dropout": 0.2}
SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}


class Noted(TorchDispatchMode):
    """Notes which of torch's functions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.functions.append(str(function))
        return function(*args, **(kwargs or {}))


def drawn(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    out: torch.Tensor = module(x)
    return out


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 5), slice(0, 5)])
@pytest.mark.parametrize("whole", [nn.Dropout(0.4), DropPath(0.4), DropPath(0.4, False)])
def test_a_part_loses_what_it_loses_in_the_whole(whole, rows):
    part = Part(rows, 5)
    if isinstance(whole, DropPath):
        own = PartDropPath(whole.drop_prob, whole.scale_by_keep, part)
    else:
        own = PartDropout(whole.p, part)
    x = torch.randn(5, 7, 3)
    dropped = drawn(whole, x)
    assert (dropped == 0).any()
    expected = dropped[rows]
    assert drawn(own, x[rows]).equal(expected)
    after = torch.rand(1)
    drawn(whole, x)
    assert torch.rand(1).equal(after)  # every process has drawn as much
    assert own.eval()(x[rows]).equal(x[rows])


@pytest.mark.parametrize("whole", [nn.Dropout(0.4), DropPath(0.4)])
def test_a_part_draws_by_the_same_kernel_on_a_gpu(whole):
    """Kernels, of which a GPU has several for one distribution, draw other numbers."""
    drawing = {"aten.bernoulli_.float", "aten.native_dropout.default"}
    kernels = []
    for is_part in (False, True):
        model = nn.Sequential(whole)
        if is_part:
            drop_for(model, Part(slice(0, 2), 5))
        with FakeTensorMode(), Noted() as noted:
            model(torch.empty(2 if is_part else 5, 7, 3, device="cuda"))
        kernels.append(drawing.intersection(noted.functions))
    assert kernels[0] == kernels[1] and len(kernels[0]) == 1


def test_a_kernel_that_draws_for_its_images_alone_drops_others_in_each_part(monkeypatch):
    """As attention on a GPU: parts drop differently, and have drawn as much afterwards."""
    monkeypatch.setattr("weaktr.models.blocks.draws_for", lambda *_: False)
    monkeypatch.setattr("weaktr.ops.attention.definition.keeps_too_much", lambda *_: False)
    settings = SEGMENTER | {"drop_path": 0.0, "dropout": 0.0}
    model = small.segmenter(
        "vit_tiny_patch16_224", 4, decoder="mask_transformer", backbone_args=SIZES, **settings
    ).train()
    for block in model.decoder.blocks:
        block.attn.attn_drop = nn.Dropout(0.3)
    part = Part(slice(0, 5), 5)
    drop_for(model, part)
    image = torch.randn(1, 3, 32, 32).expand(5, -1, -1, -1)
    found, after = [], []
    for rows in (slice(0, 1), slice(1, 2), slice(2, 5), slice(0, 1)):
        part.rows = rows
        torch.manual_seed(6)
        found += model(image[rows])
        after.append(torch.rand(2))
    assert all(numbers.equal(after[0]) for numbers in after)
    *each, again = found
    assert again.equal(each[0])
    for index, one in enumerate(each):
        assert not any(one.allclose(other) for other in each[index + 1 :])


@pytest.mark.parametrize("keeps_maps", [False, True])
def test_the_parts_of_a_batch_have_the_logits_and_gradients_of_the_whole(monkeypatch, keeps_maps):
    if keeps_maps:  # as compiled
        monkeypatch.setattr("weaktr.models.dropping.keeps_too_much", lambda *_: False)
    parts = []
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    for rows in (slice(0, 5), slice(0, 2), slice(2, 5)):
        torch.manual_seed(0)
        model = (
            small.segmenter(
                "vit_tiny_patch16_224",
                4,
                decoder="mask_transformer",
                backbone_args=SIZES,
                **SEGMENTER,
            )
            .double()
            .train()
        )
        if rows != slice(0, 5):
            drop_for(model, Part(rows, 5))
        torch.manual_seed(1)
        logits = model(images[rows])
        logits.square().sum().backward()
        parts.append((logits, [parameter.grad for parameter in model.parameters()]))
    whole, *others = parts
    torch.testing.assert_close(torch.cat([logits for logits, _ in others]), whole[0])
    for own, first, second in zip(whole[1], others[0][1], others[1][1], strict=True):
        torch.testing.assert_close(first + second, own)
