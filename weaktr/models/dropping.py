"""Dropout and stochastic depth of some images of a batch, of which the rest is elsewhere, or later.

Every process, and every piece of its part of a batch (`weaktr.training.micro_batches`), draws for
the whole batch, in the same order and from the same random numbers, and takes what belongs to its
own images. So a batch loses the same whether one process has it or many, at once or in pieces, and
all processes stay at the same place in their random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from weaktr.ops.attention.definition import keeps_too_much
from weaktr.ops.attention.dropout import attend_with_dropout


@dataclass
class Part:
    """The images that are computed now.

    Args:
        rows: which images of the batch.
        batch: images of a whole batch.
    """

    rows: slice
    batch: int

    def of(self, x: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """What this part's activations `x` are multiplied with: 0, or 1 / (1 - p).

        Args:
            x: [b, ...], of the images of this part.
            shape: of what is drawn for one image.
            p: probability of 0.
        """
        return F.dropout(x.new_ones(self.batch, *shape), p)[self.rows].clone()

    def kept(self, x: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """Where `of` would not have 0: bool."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        drawn = x.new_empty(self.batch, *shape, dtype=dtype).bernoulli_(1 - p)
        return drawn[self.rows].bool()


class PartDropout(nn.Dropout):
    """Dropout of the images of a part."""

    def __init__(self, p: float, part: Part) -> None:
        super().__init__(p)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> the same with some elements 0, in training."""
        return x * self.part.of(x, x.shape[1:], self.p) if self.training and self.p else x


class PartDropPath(DropPath):  # type: ignore[misc] # timm has no types
    """Stochastic depth of the images of a part."""

    def __init__(self, drop_prob: float, scale_by_keep: bool, part: Part) -> None:
        super().__init__(drop_prob, scale_by_keep)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> the same with some images 0, in training."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        # as timm draws: on a GPU dropout draws others
        drawn = x.new_empty(self.part.batch, *(1,) * (x.ndim - 1)).bernoulli_(keep)[self.part.rows]
        return x * (drawn / keep if self.scale_by_keep else drawn)


def drop_for(model: nn.Module, part: Part) -> None:
    """Have a model drop what it would drop of this part's images if it had the whole batch."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            own: nn.Module
            if isinstance(child, DropPath) and child.drop_prob:
                own = PartDropPath(child.drop_prob, child.scale_by_keep, part)
            elif isinstance(child, nn.Dropout) and child.p:
                own = PartDropout(child.p, part)
            else:
                continue
            setattr(module, name, own.train(child.training))


def attend_dropping(q: Tensor, k: Tensor, v: Tensor, drop: PartDropout) -> Tensor:
    """softmax(q · kᵀ / √d) · v, whose weights a part drops.

    Args:
        q, k, v: [b, H, N, d].
        drop: in training.
    """
    kept = drop.part.kept(q, (q.shape[1], q.shape[2], k.shape[2]), drop.p)
    if keeps_too_much(q, k, v):
        return attend_with_dropout(q, k, v, drop.p, kept)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return weights * kept / (1 - drop.p) @ v


def draws_for(dropout: nn.Module, device: torch.device) -> bool:
    """Whether attention has to keep its weights, of which `dropout` drops some of a part.

    On a GPU PyTorch's attention drops without ever having the weights (`draws_apart`).
    """
    return isinstance(dropout, PartDropout) and dropout.training and device.type == "cpu"


def draws_apart(dropout: nn.Module) -> bool:
    """Whether a kernel that draws for the images that it gets has to draw by `numbers_of`."""
    is_compiling = torch.compiler.is_compiling()  # which draws by numbers of its own
    return isinstance(dropout, PartDropout) and dropout.training and not is_compiling


@contextmanager
def numbers_of(part: Part, device: torch.device) -> Iterator[None]:
    """Draw what follows on a device by numbers of the part's own.

    Afterwards the device's numbers are as before, so that processes and pieces stay at the same
    place. What is drawn depends on the parts into which a batch is divided.
    """
    seed = int(torch.randint(2**62, ()))  # on the host; the same for every part
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index]
    before = generator.get_state()
    generator.manual_seed(seed + part.rows.start)
    try:
        yield
    finally:
        generator.set_state(before)
