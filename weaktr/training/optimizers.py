"""Optimisers and learning-rate schedules of both stages, as published.

Schedules are functions of a position (epoch or step) and keep no state, so a resumed run needs
nothing but its position.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from weaktr.models import CamModel, Segmenter

#: Parameters without weight decay besides biases and all one-dimensional tensors.
NO_DECAY = {"pos_embed", "cls_token", "reg_token", "cls_emb"}


def cam_optimizer(
    model: CamModel, lr: float, weight_decay: float = 0.03, *, backbone_lr: float = 1.0
) -> torch.optim.AdamW:
    """AdamW for stage 1; with `backbone_lr` 1 one group, as published: every parameter decays.

    Args:
        model: a `CamModel`.
        lr: learning rate for the batch as it is (published: 6e-4 · batch / 512).
        weight_decay: of all parameters.
        backbone_lr: factor on `lr` for the pretrained part of the backbone, which is all of it
            but the class tokens. 0 freezes that part: right for a strong backbone (DINOv2) and
            few images, and cheaper.

    Raises:
        ValueError: `backbone_lr` is negative.
    """
    if backbone_lr < 0:
        raise ValueError(f"backbone_lr: expected at least 0, got {backbone_lr}")
    pretrained = [p for n, p in model.vit.named_parameters() if n != "cls_token"]
    if backbone_lr == 0:
        for parameter in pretrained:
            parameter.requires_grad_(False)
    slow = {id(p) for p in pretrained if backbone_lr != 1}
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = (
        {
            1.0: [p for p in trained if id(p) not in slow],
            backbone_lr: [p for p in trained if id(p) in slow],
        }
        if slow
        else {1.0: trained}
    )
    groups = [
        {"params": part, "lr": lr * scale, "lr_scale": scale}
        for scale, part in parts.items()
        if part
    ]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def segmenter_groups(
    model: Segmenter, *, encoder_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of a `Segmenter`, one for each layer, with and without weight decay.

    The learning rate of a group is `lr_scale` times the schedule's: 1 for the decoder,
    encoder_lr · layer_decay^(L + 1 - i) for the encoder with i = 0 for embeddings, 1..L for
    blocks and L + 1 for the final norm.

    Args:
        model: a `Segmenter`.
        encoder_lr: factor on the encoder's learning rate (published: 0.1).
        layer_decay: further factor for each layer towards the input (published: 1).
        weight_decay: of matrices; biases, norms, tokens and positions have none.

    Returns:
        Groups with keys name, params, names, lr_scale, weight_decay.
    """
    depth = len(model.vit.blocks)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer(name, depth)
        scale = 1.0 if layer is None else encoder_lr * layer_decay ** (depth + 1 - layer)
        plain = parameter.ndim == 1 or name.rsplit(".", 1)[-1] in NO_DECAY
        key = f"{'decoder' if layer is None else f'encoder {layer}'}{' no decay' if plain else ''}"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "names": [],
                "lr_scale": scale,
                "weight_decay": 0.0 if plain else weight_decay,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _layer(name: str, depth: int) -> int | None:
    """Encoder layer of a parameter: 0 embeddings, 1..L blocks, L + 1 norm; None = decoder."""
    if not name.startswith("vit."):
        return None
    block = re.match(r"vit\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return depth + 1 if name.startswith("vit.norm.") else 0


def segmenter_optimizer(
    model: Segmenter,
    lr: float,
    *,
    encoder_lr: float = 0.1,
    layer_decay: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    kind: str = "sgd",
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (published), or AdamW, over `segmenter_groups`.

    Raises:
        ValueError: `kind` is neither "sgd" nor "adamw".
    """
    groups = segmenter_groups(
        model, encoder_lr=encoder_lr, layer_decay=layer_decay, weight_decay=weight_decay
    )
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise ValueError(f"kind: expected 'sgd' or 'adamw', got {kind!r}")


class Schedule(ABC):
    """A learning rate as a function of position."""

    @abstractmethod
    def at(self, position: float) -> float:
        """Learning rate at `position` (epoch or step, from 0), before any group's lr_scale."""

    def apply(self, optimizer: torch.optim.Optimizer, position: float) -> float:
        """Set every group's rate for `position`; returns the rate before lr_scale."""
        lr = self.at(position)
        groups: Iterable[dict[str, Any]] = optimizer.param_groups
        for group in groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Linear warm-up, then half a cosine down to `min_lr`.

    Args:
        lr: peak rate.
        total: length of the cosine, in epochs or steps, counted from 0 (warm-up included).
        min_lr, warmup_lr: rate at the end, and at the start of the warm-up.
        warmup: length of the warm-up.
        lag: positions by which the schedule is late. The published stage 1 steps its schedule
            after the epoch, so epochs 0 and 1 both run at the warm-up rate: lag 1.
    """

    lr: float
    total: float
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup: float = 5
    lag: float = 1

    def at(self, position: float) -> float:
        t = max(position - self.lag, 0)
        if t < self.warmup:
            return self.warmup_lr + t * (self.lr - self.warmup_lr) / self.warmup
        if t >= self.total:
            return self.min_lr
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (
            1 + math.cos(math.pi * t / self.total)
        )


@dataclass(frozen=True)
class PolynomialSchedule(Schedule):
    """lr(t) = (lr - min_lr) · (1 - t / total)^power + min_lr, after an optional linear warm-up.

    Past the end the rate stays at `min_lr` (the published code lets it collapse there).

    Args:
        lr: rate at t = 0.
        total: steps.
        min_lr, power: floor and exponent.
        warmup: steps of linear warm-up from `min_lr` to the polynomial's rate at its end. (The
            published code runs step 0 of a warm-up at the full rate; this one does not.)
    """

    lr: float
    total: int
    min_lr: float = 1e-5
    power: float = 0.9
    warmup: int = 0

    def at(self, position: float) -> float:
        rest = max(1 - max(position, self.warmup) / self.total, 0.0)
        rate = (self.lr - self.min_lr) * rest**self.power + self.min_lr
        if position < self.warmup:
            return self.min_lr + (rate - self.min_lr) * position / self.warmup
        return rate
