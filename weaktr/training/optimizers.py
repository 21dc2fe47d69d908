"""Optimisers of both stages, and the learning-rate schedule of stage 2, as published.

timm's schedules start from a group's `initial_lr` and multiply by its `lr_scale`. They compute a
rate from the position alone, so a resumed run needs nothing but its position.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from timm.scheduler import PolyLRScheduler

from weaktr.models import CamModel, Segmenter

#: Parameters without weight decay besides biases and all one-dimensional tensors.
NO_DECAY = {"pos_embed", "cls_token", "reg_token", "cls_emb"}


def cam_optimizer(
    model: CamModel,
    lr: float,
    weight_decay: float = 0.03,
    *,
    backbone_lr: float = 1.0,
    class_tokens: Literal["trained", "frozen"] = "trained",
) -> torch.optim.AdamW:
    """AdamW for stage 1. With `backbone_lr` 1 it has one group, as published: all weights decay.

    Args:
        model: a `CamModel`.
        lr: learning rate, not scaled by the batch size (published: 6e-4 · batch / 512).
        weight_decay: of all parameters.
        backbone_lr: factor on `lr` for the pretrained part of the backbone, which is all of it
            but the class tokens. 0 freezes that part, which is cheaper and suits a strong backbone
            (DINOv2) with few images.
        class_tokens: "frozen" leaves them as they are.

    Raises:
        ValueError: `backbone_lr` is negative.
    """
    if backbone_lr < 0:
        raise ValueError(f"backbone_lr: expected at least 0, got {backbone_lr}")
    pretrained = [p for n, p in model.vit.named_parameters() if n != "cls_token"]
    if backbone_lr == 0:
        for parameter in pretrained:
            parameter.requires_grad_(False)
    if class_tokens == "frozen" and model.vit.cls_token is not None:
        model.vit.cls_token.requires_grad_(False)
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
        {"params": part, "lr": lr * scale, "initial_lr": lr, "lr_scale": scale}
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

    An `encoder_lr` of 0 freezes the encoder (`Segmenter.freeze_encoder`).

    Raises:
        ValueError: `kind` is neither "sgd" nor "adamw".
    """
    if encoder_lr == 0:
        model.freeze_encoder()
    groups = segmenter_groups(
        model, encoder_lr=encoder_lr, layer_decay=layer_decay, weight_decay=weight_decay
    )
    for group in groups:
        group.update(lr=lr * group["lr_scale"], initial_lr=lr)
    if kind == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        for group in groups if momentum else ():
            for parameter in group["params"]:
                # torch's own begin as unset memory, and stay it where fp16 skips the first step
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise ValueError(f"kind: expected 'sgd' or 'adamw', got {kind!r}")


class PolynomialSchedule(PolyLRScheduler):
    """timm's polynomial schedule with the published warm-up, which ends on the polynomial.

    lr(t) = (lr - lr_min) · (1 - t / t_initial)^power + lr_min. Before `warmup_t` it rises linearly
    from `lr_min` to lr(warmup_t); timm's rises to lr and then jumps down. (The published code
    differs in two places: step 0 of a warm-up runs at lr, and after the end the rate collapses.
    Here step 0 follows the rule, and after the end the rate stays at `lr_min`.)

    The arguments are those of timm's schedule; `warmup_lr_init` has no effect.

    Source: reference.md 44.
    """

    def _get_lr(self, t: int) -> list[float]:
        rates = super()._get_lr(max(t, self.warmup_t))
        if t < self.warmup_t:
            return [self.lr_min + (rate - self.lr_min) * t / self.warmup_t for rate in rates]
        return rates
