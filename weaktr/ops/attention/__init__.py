"""Softmax attention of the backbones: which implementation, chosen here and nowhere else.

By default (`attention="auto"`) the C++ code on a CPU (`weaktr.ops.attention.cpu`, also called
"cpu"), else `F.scaled_dot_product_attention`, which is also what "sdpa" stands for. SDPA's kernels
know the row log-sum-exp that stage 1 needs; asked for that, they are called by their own names
(`weaktr.ops.attention.sdpa`), which saves computing q·k once more. On CUDA, where statistics are
wanted, Triton ("triton", `weaktr.kernels.attention`) may yield them in the same launch.

`attention="xformers"`, or the environment variable ``WEAKTR_ATTENTION``, takes xformers' kernels
where that package is installed, on CUDA alone (`weaktr.ops.attention.xformers`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.ops.head_stats import HeadStats
from weaktr.ops.registry import Backend, Op, Triton, register
from weaktr.ops.tracing import is_exporting
from weaktr.ops.upload import upload

OP = register(
    Op(
        "attention",
        backends=(
            Triton("weaktr.kernels.attention"),
            Backend("cpu", "weaktr.ops.attention.cpu", devices=("cpu",)),
            Backend("torch", "weaktr.ops.attention.definition"),
            Backend(
                "xformers",
                "weaktr.ops.attention.xformers",
                devices=("cuda",),
                auto=False,
                advice="leave attention at 'auto'",
            ),
        ),
        usual={"dtype": torch.float32, "head_dim": 64, "dropout": False},
        lenient=True,
    )
)

ENVIRONMENT_VARIABLE = "WEAKTR_ATTENTION"
#: What it is called by a user -> the backend of `OP`.
ATTENTIONS = {
    "auto": "auto",
    "cpu": "cpu",
    "triton": "triton",
    "sdpa": "torch",
    "xformers": "xformers",
}
#: C class tokens at the front and P patches at the end, of which `head_stats` are wanted.
Statistics = tuple[int, int]


class Packing(NamedTuple):
    """Where images lie that are packed one after another along the tokens; made once a batch."""

    lengths: list[int]  #: tokens of each, at least 1
    starts: Tensor  #: int32 [images + 1] on the device: each one's first token, then their sum


def packing_of(lengths: Sequence[int], device: torch.device) -> Packing:
    """`Packing` of images with so many tokens."""
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")
    return Packing(list(lengths), upload(starts, device))


class AttentionInputs(NamedTuple):
    """What the backends take; see `softmax_attention`."""

    q: Tensor  #: [B, H, N, d], of any strides
    k: Tensor  #: [B, H, N, d]
    v: Tensor  #: [B, H, N, d]
    dropout: float  #: probability that a weight is dropped
    with_lse: bool  #: whether the log-sum-exp of the rows is wanted
    packing: Packing | None  #: of packed images; B is 1 then
    statistics: Statistics | None  #: wanted of images that are not packed


class Attended(NamedTuple):
    """What `softmax_attention` returns."""

    out: Tensor  #: [B, H, N, d]
    lse: Tensor | None  #: [B, H, N] without gradient, float32 or wider
    stats: HeadStats | None = None  #: without gradient


#: Of torch's operators: out [B, H, N, d], lse [B, H, N], class rows [B, H, C, P], column means
#: [B, H, P], all but the first in float32.
Results = tuple[Tensor, Tensor, Tensor, Tensor]


def chosen_attention(attention: str | None = None) -> str:
    """The name in force: the argument, then ``WEAKTR_ATTENTION``, then "auto".

    Raises:
        ValueError: no such attention.
    """
    name = attention or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
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
    packing: Packing | None = None,
    statistics: Statistics | None = None,
    attention: str = "auto",
) -> Attended:
    """softmax(q kᵀ / √d) v, and what else is asked for where it costs next to nothing.

    Args:
        q, k, v: [B, H, N, d], N >= 1.
        dropout: probability that an attention weight is dropped.
        with_lse: whether the log-sum-exp of the rows is wanted.
        packing: of several images, one after another in one sequence (B is 1); each attends
            to itself alone.
        statistics: (C, P) whose `head_stats` are wanted; not together with `packing`.
        attention: one of `ATTENTIONS`.

    Returns:
        `Attended`; log-sum-exp and statistics are None where not asked for, or where it is for
        `head_stats` to compute them.

    Raises:
        BackendUnavailable: an attention named explicitly is not there, or takes no such tensors.
    """
    if attention == "auto" and is_exporting():
        attention = "sdpa"  # exporters know the public function alone
    facts = {"dtype": q.dtype, "head_dim": q.shape[-1], "dropout": dropout > 0}
    run = OP.pick(q.device, ATTENTIONS[attention], **facts)
    attended: Attended = run(AttentionInputs(q, k, v, dropout, with_lse, packing, statistics))
    return attended


def empty_results(q: Tensor, classes: int, patches: int) -> Results:
    """Room for `Results` of q [B, H, N, d]; the output lies as SDPA's does, heads behind tokens."""
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    sizes = [(tokens,), (classes, patches), (patches,)]
    lse, rows, means = (q.new_empty(batch, heads, *s, dtype=torch.float32) for s in sizes)
    return out, lse, rows, means
