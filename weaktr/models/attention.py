"""Softmax attention of the backbones: which implementation, chosen here and nowhere else.

By default `F.scaled_dot_product_attention`. On the CPU its kernel also knows the row
log-sum-exp that stage 1 needs; asked for that, it is called by its own name, which saves computing
q·k once more. Explicit softmax was slower for photographs (733 and 1167 tokens of DeiT-S, two
cores) and as fast for training images (8 of 216 tokens).

`attention="xformers"`, or the environment variable ``WEAKTR_ATTENTION``, takes xformers' kernels
where that package is installed, on CUDA alone (`weaktr.models.attention_xformers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.backends import pick

ENVIRONMENT_VARIABLE = "WEAKTR_ATTENTION"
#: What it is called by a user -> the backend of op "attention" (`weaktr.backends.REGISTRY`).
ATTENTIONS = {"sdpa": "torch", "xformers": "xformers"}


def chosen_attention(attention: str | None = None) -> str:
    """The name in force: the argument, then ``WEAKTR_ATTENTION``, then "sdpa".

    Raises:
        ValueError: no such attention.
    """
    name = attention or os.environ.get(ENVIRONMENT_VARIABLE) or "sdpa"
    if name not in ATTENTIONS:
        raise ValueError(
            f"attention (or {ENVIRONMENT_VARIABLE}): expected one of {list(ATTENTIONS)}, "
            f"got {name!r}"
        )
    return name


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float = 0.0,
    with_lse: bool = False,
    lengths: Sequence[int] | None = None,
    attention: str = "sdpa",
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ / √d) v, and the log-sum-exp of its rows where that costs nothing.

    Args:
        q, k, v: [B, H, N, d], N >= 1.
        dropout: probability that an attention weight is dropped.
        with_lse: whether the log-sum-exp is of use.
        lengths: tokens of each of several images, packed into one sequence (B is 1); each attends
            to itself alone.
        attention: one of `ATTENTIONS`.

    Returns:
        (output [B, H, N, d], lse [B, H, N] without gradient, float32 or wider; None where not
        asked for, or where it would have to be computed).

    Raises:
        BackendUnavailable: xformers is not installed, or the tensors are not on CUDA.
    """
    settings: dict[str, Any] = {"dropout": dropout, "with_lse": with_lse, "lengths": lengths}
    if attention == "sdpa":
        return attention_torch(q, k, v, **settings)
    run = pick("attention", q.device, ATTENTIONS[attention])
    result: tuple[Tensor, Tensor | None] = run(q, k, v, **settings)
    return result


def attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float,
    with_lse: bool,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor | None]:
    """`softmax_attention` by SDPA; packed neighbours of one length are a batch."""
    if lengths is None:
        return _attend(q, k, v, dropout, with_lse)
    outs, sums = [], []
    for start, count, length in runs(lengths):
        tokens = slice(start, start + count * length)
        queries, keys, values = (
            x[0, :, tokens].unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v)
        )
        out, lse = _attend(queries, keys, values, dropout, with_lse)
        outs.append(out.transpose(0, 1).flatten(1, 2))
        sums.append(None if lse is None else lse.transpose(0, 1).flatten(1, 2))
    known = [lse for lse in sums if lse is not None]
    together = torch.cat(known, 1)[None] if len(known) == len(sums) else None
    return torch.cat(outs, 1)[None], together


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first token, images, tokens of each) of neighbours that are equally long."""
    start = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        yield start, count, length
        start += count * length


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    if not (with_lse and _knows_lse(q, k, v, dropout)):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), None
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse.detach()


def _knows_lse(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype
        and dropout == 0.0
        and not torch.compiler.is_exporting()  # exporters know the public function alone
    )
