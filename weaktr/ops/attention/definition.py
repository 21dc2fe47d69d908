"""Attention by PyTorch's own kernels, which is the definition of the op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.ops.attention import Attended, AttentionInputs
from weaktr.ops.attention.dropout import attend_with_dropout
from weaktr.ops.attention.sdpa import attend_by, attend_packed, is_cast, is_trained, kernel_of
from weaktr.ops.tracing import is_exporting


def attention_torch(inputs: AttentionInputs) -> Attended:
    """`softmax_attention` by SDPA's kernels; statistics never."""
    q, k, v, dropout, with_lse, packing, _ = inputs
    by_name = with_lse or (q.is_cuda and not is_trained(q, k, v))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Attended:
        if dropout > 0 and keeps_too_much(q, k, v):
            return Attended(attend_with_dropout(q, k, v, dropout), None)
        kernel = kernel_of(q, k, v, dropout) if by_name else ""
        if not kernel:
            return Attended(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), None)
        out, lse = attend_by(kernel, q, k, v)
        return Attended(out, lse if with_lse else None)

    if packing is None:
        return attend(q, k, v)
    if q.is_cuda and not is_trained(q, k, v) and kernel_of(q, k, v, dropout) == "flash":
        out, lse = attend_packed(q, k, v, packing)
        return Attended(out, lse if with_lse else None)
    return by_length(attend, q, k, v, packing.lengths)


def keeps_too_much(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch would keep whole maps for the gradient: with dropout, on a CPU."""
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype
        and q.shape == k.shape == v.shape
        and is_trained(q, k, v)
        and not (torch.compiler.is_compiling() or is_exporting() or is_cast(q))
    )


def by_length(
    attend: Callable[[Tensor, Tensor, Tensor], Attended],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
) -> Attended:
    """Attention of packed images by `attend`, to which neighbours of one length are a batch."""
    outs, sums = [], []
    for start, count, length in runs(lengths):
        tokens = slice(start, start + count * length)
        queries, keys, values = (
            x[0, :, tokens].unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v)
        )
        out, lse, _ = attend(queries, keys, values)
        outs.append(out.transpose(1, 2).flatten(0, 1))  # heads behind tokens, as they lie
        sums.append(None if lse is None else lse.transpose(0, 1).flatten(1, 2))
    known = [lse for lse in sums if lse is not None]
    together = _joined(known, 1)[None] if len(known) == len(sums) else None
    return Attended(_joined(outs, 0).transpose(0, 1)[None], together)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat` that does not copy a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first token, images, tokens of each) of neighbours that are equally long."""
    start = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        yield start, count, length
        start += count * length
