"""`confusion`: how often each true label was given each predicted label.

    confusion[t, p] = #{pixels : truth = t and prediction = p}

Source: the counts behind mean intersection over union (PASCAL VOC, Everingham et al. 2010,
section 4.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from weaktr.ops.registry import Backend, Op, register

OP = register(Op("confusion", backends=(Backend("torch", "weaktr.ops.confusion"),)))


def confusion(
    prediction: Tensor,
    truth: Tensor,
    num_labels: int,
    *,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:
    """Confusion matrix of two label maps.

    Args:
        prediction: integer tensor of any shape, labels 0..L-1.
        truth: integer tensor, same shape and device, labels 0..L-1 or `ignore_index`.
        num_labels: L >= 1, background included.
        ignore_index: pixels with this truth are not counted; their prediction must be in range too.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        int64 [L, L], rows = truth, columns = prediction, on the device of the inputs.

    Raises:
        ValueError: shapes, devices or dtypes that do not fit, or a label out of range.
        BackendUnavailable: `backend` was named and cannot run.
    """
    if num_labels < 1:
        raise ValueError(f"num_labels: expected at least 1, got {num_labels}")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name}: expected integer labels, got {labels.dtype}")
    if prediction.shape != truth.shape or prediction.device != truth.device:
        raise ValueError(
            f"prediction: expected shape {tuple(truth.shape)} on {truth.device} like truth, "
            f"got {tuple(prediction.shape)} on {prediction.device}"
        )
    run = OP.pick(truth.device, backend)
    counts: Tensor = run(prediction, truth, num_labels, ignore_index)
    return counts


def confusion_torch(
    prediction: Tensor, truth: Tensor, num_labels: int, ignore_index: int
) -> Tensor:
    """The definition: one `bincount` over truth · L + prediction."""
    counted = truth != ignore_index
    rows = truth[counted].long()
    columns = prediction.long()
    _check_range("truth", rows, num_labels, f" or {ignore_index} (ignore)")
    _check_range("prediction", columns, num_labels, "")
    pairs = rows * num_labels + columns[counted]
    return torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)


def _check_range(name: str, labels: Tensor, num_labels: int, also: str) -> None:
    if labels.numel() == 0:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"{name}: expected labels 0..{num_labels - 1}{also}, got values from {low} to {high}"
        )
