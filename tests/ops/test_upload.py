"""Tables from the host to a device."""

import torch

from weaktr.ops.upload import upload_table

CPU = torch.device("cpu")


def test_same_rows_are_uploaded_once():
    table = upload_table([[1, 2], [3, 4]], 2, CPU)
    assert table.tolist() == [[1, 2], [3, 4]]
    assert table.dtype == torch.int64
    assert upload_table([(1, 2), (3, 4)], 2, CPU) is table
    assert upload_table([[1, 2], [3, 5]], 2, CPU).tolist() == [[1, 2], [3, 5]]


def test_no_row():
    assert upload_table([], 4, CPU).shape == (0, 4)


def test_table_of_inference_serves_elsewhere():
    with torch.inference_mode():
        table = upload_table([[7]], 1, CPU)
    assert not table.is_inference()
