"""Energies for `dense_crf`, from a label map or from probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weaktr.ops.dense_crf.problem import MOST_LABELS, Array, ArrayOrTensor, LabelMap, as_tensor
from weaktr.ops.upload import upload

#: Keeps the logarithm of a probability of 0 finite.
SMALLEST_PROBABILITY = 1e-5
#: What may be meant as probabilities: rounded ones, and the published ensemble's, which sum to 1.8.
LOWEST, HIGHEST = -1e-3, 2.0
#: Integers that torch stores and little else.
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def unary_from_labels(
    labels: ArrayOrTensor, n_labels: int, gt_prob: float = 0.7, zero_unsure: bool = False
) -> ArrayOrTensor:
    """Energies of a label map that is right with probability `gt_prob`.

        U[l] = -log(gt_prob) for the pixel's own label, -log((1 - gt_prob) / (L - 1)) for others

    `weaktr.ops.dense_crf_labels` gives the labels under these energies without storing them.

    Args:
        labels: integers [*spatial], 0..L-1; with `zero_unsure` 0 = unknown and 1..L.
        n_labels: L >= 1, without the unknown.
        gt_prob: in (0, 1).
        zero_unsure: unknown pixels get -log(1/L) for every label, the other labels count from 1.

    Returns:
        float32 [L, *spatial]; NumPy array or tensor like `labels`.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range.

    Source: pydensecrf, `unary_from_labels`.
    """
    table = label_table(n_labels, gt_prob, zero_unsure)
    rows = checked_labels(labels, len(table), zero_unsure)
    energies = table.T.to(rows.device)[:, rows.long()]
    return energies.numpy() if isinstance(labels, np.ndarray) else energies


def unary_from_probabilities(probs: ArrayOrTensor) -> ArrayOrTensor:
    """Energies -log(clip(p, 1e-5, 1)) of label probabilities.

    Args:
        probs: floating point [L, *spatial]; need not sum to 1, as those of the published ensemble,
            which go up to 1.8.

    Returns:
        float32 [L, *spatial]; NumPy array or tensor like `probs`.

    Raises:
        ValueError: an argument of the wrong shape or dtype, NaN, infinity, or values that are no
            probabilities, such as logits.

    Source: pydensecrf, `unary_from_softmax`.
    """
    values = as_tensor("probs", probs)
    if values.ndim < 2 or not values.is_floating_point():
        raise ValueError(
            f"probs: expected floating point [L, *spatial], got {values.dtype} "
            f"{tuple(values.shape)}"
        )
    if not are_probabilities([values]):
        if count := int((~values.isfinite()).sum()):
            raise ValueError(f"probs: expected numbers, got NaN or infinity in {count} places")
        low, high = (float(bound) for bound in values.aminmax())
        raise ValueError(
            f"probs: expected probabilities, 0 to 1, got values from {low:.4g} to {high:.4g}; of "
            "logits take softmax over the labels first, divide bytes by 255"
        )
    energies = energies_of(values)
    return energies.numpy() if isinstance(probs, np.ndarray) else energies


def are_probabilities(values: Sequence[Tensor]) -> bool:
    """Whether floating point values, on one device, may all be probabilities; waits for it once."""
    bounds = [bound for one in values if one.numel() for bound in one.aminmax()]
    known = torch.stack(bounds).tolist() if bounds else []
    return all(LOWEST <= bound <= HIGHEST for bound in known)  # NaN is neither


def energies_of(probs: Tensor) -> Tensor:
    """`unary_from_probabilities` without its checks; NaN stays NaN."""
    return probs.float().clamp(SMALLEST_PROBABILITY, 1.0).log_().neg_()


def label_table(n_labels: int, gt_prob: float, zero_unsure: bool) -> Tensor:
    """The energies that `unary_from_labels` gives each value of a label map.

    Returns:
        float32 [V, L], V = L, or L + 1 with the unknown first.

    Raises:
        ValueError: an argument out of its range.
    """
    if not isinstance(n_labels, (int, np.integer)) or n_labels < 1:
        raise ValueError(f"n_labels: expected at least 1, got {n_labels!r}")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob: expected a probability in (0, 1), got {gt_prob}")
    others = -math.log((1 - gt_prob) / max(n_labels - 1, 1))
    full = partial(torch.full, dtype=torch.float32, device="cpu")
    table = full((int(n_labels), int(n_labels)), others).fill_diagonal_(-math.log(gt_prob))
    if zero_unsure:
        unknown = full((1, int(n_labels)), math.log(n_labels))
        table = torch.cat([unknown, table])
    return table


def checked_labels(labels: Array, values: int, zero_unsure: bool) -> Tensor:
    """A label map, integers 0 ... `values` - 1 of any shape.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range.
    """
    tensor = as_tensor("labels", labels)
    if tensor.ndim == 0 or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(
            f"labels: expected integers [*spatial], got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if tensor.dtype in UNSIGNED:
        tensor = tensor.long()
    require_range(tensor, values, zero_unsure)
    return tensor


def require_range(labels: Tensor, values: int, zero_unsure: bool) -> None:
    """Raise `ValueError` unless all labels are 0 ... `values` - 1; waits for their device."""
    low, high = (int(bound) for bound in labels.aminmax()) if labels.numel() else (0, 0)
    if low < 0 or high >= values:
        advice = (
            ""
            if zero_unsure
            else ("; map unknown pixels (255) to 0, the others to 1..L, and use zero_unsure")
        )
        raise ValueError(
            f"labels: expected 0..{values - 1}, got values from {low} to {high}{advice}"
        )


def label_map(
    labels: Array,
    n_labels: int,
    gt_prob: float,
    zero_unsure: bool,
    tables: dict[tuple[int, torch.device], Tensor] | None = None,
) -> LabelMap:
    """A label map and the table of its energies, on its device.

    The range of uint8 labels is left to `check_energies`, which looks at all images at once.

    Args:
        labels, n_labels, gt_prob, zero_unsure: see `unary_from_labels`.
        tables: of other images with the same settings, by their number of labels and device; this
            one's is added.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range, or an empty map.
    """
    if isinstance(n_labels, (int, np.integer)) and n_labels > MOST_LABELS:
        raise ValueError(f"n_labels: expected 1..{MOST_LABELS}, got {n_labels}")
    tables = {} if tables is None else tables
    checked = as_tensor("labels", labels)
    known = isinstance(n_labels, (int, np.integer))
    table = tables.get((int(n_labels), checked.device)) if known else None
    if table is None:
        table = upload(label_table(n_labels, gt_prob, zero_unsure), checked.device)
        tables[int(n_labels), checked.device] = table
    if checked.dtype != torch.uint8 or checked.ndim == 0:
        checked = checked_labels(checked, len(table), zero_unsure).to(torch.uint8)
    if checked.numel() == 0:
        raise ValueError(f"labels: expected at least one pixel, got {tuple(checked.shape)}")
    return LabelMap(checked, table)
