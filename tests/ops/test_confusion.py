"""`confusion` against a loop over pixels."""

import pytest
import torch

from weaktr.ops import confusion

OP = "confusion"


def count(prediction, truth, num_labels, ignore_index):
    table = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if t != ignore_index:
            table[t, p] += 1
    return table


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize(("shape", "num_labels"), [((5, 7), 3), ((2, 4, 9), 21), ((11,), 1)])
def test_counts(backend, device, shape, num_labels, dtype):
    truth = torch.randint(num_labels, shape, dtype=dtype)
    prediction = torch.randint(num_labels, shape, dtype=dtype)
    truth[torch.rand(shape) < 0.2] = 255 if dtype == torch.uint8 else -1
    ignore = 255 if dtype == torch.uint8 else -1
    table = confusion(
        prediction.to(device), truth.to(device), num_labels, ignore_index=ignore, backend=backend
    )
    assert table.dtype == torch.int64
    assert table.device.type == device
    assert torch.equal(table.cpu(), count(prediction, truth, num_labels, ignore))


def test_rows_are_truth_and_columns_prediction(backend):
    prediction, truth = torch.tensor([2, 2, 0]), torch.tensor([1, 1, 255])
    assert confusion(prediction, truth, 3, backend=backend).tolist() == [
        [0, 0, 0],
        [0, 0, 2],
        [0, 0, 0],
    ]


def test_mixed_dtypes_and_strides(backend):
    truth = torch.randint(4, (6, 10), dtype=torch.uint8)
    prediction = torch.randint(4, (10, 12))[:, ::2].T
    table = confusion(prediction, truth, 4, backend=backend)
    assert torch.equal(table, count(prediction, truth, 4, 255))


@pytest.mark.parametrize("truth", [torch.full((4,), 255), torch.zeros(0, dtype=torch.int64)])
def test_nothing_to_count(backend, truth):
    table = confusion(torch.zeros_like(truth), truth, 2, backend=backend)
    assert table.tolist() == [[0, 0], [0, 0]]


ZEROS = torch.zeros(2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("prediction", "truth", "num_labels", "message"),
    [
        (ZEROS + 3, ZEROS, 3, r"prediction: expected labels 0..2, got values from 3 to 3"),
        (ZEROS, ZEROS + 4, 3, r"truth: expected labels 0..2 or 255 \(ignore\), got .* 4 to 4"),
        (ZEROS.long() - 1, ZEROS, 3, r"prediction: expected labels 0..2, got values from -1"),
        (ZEROS.float(), ZEROS, 3, r"prediction: expected integer labels, got torch.float32"),
        (ZEROS, ZEROS.bool(), 3, r"truth: expected integer labels, got torch.bool"),
        (ZEROS[:1], ZEROS, 3, r"prediction: expected shape \(2, 3\) .*got \(1, 3\)"),
        (ZEROS, ZEROS, 0, r"num_labels: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_named(prediction, truth, num_labels, message):
    with pytest.raises(ValueError, match=message):
        confusion(prediction, truth, num_labels)
