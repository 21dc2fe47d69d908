"""Stage 1, CAMs of one photograph-sized image, beside the published way.

Every row has a process of its own (`cam_work.py`), and the rows of a group run in turns
(`turns.py`).
"""

from functools import cache

import cam_work
import pytest
from cam_work import CLASSES
from turns import KEPT, in_turns

#: "torch": the plain definitions of all ops. On a CPU what a process keeps matters, so the
#: published way has a second row.
ROWS = ["torch", "weaktr", "published", "published" + KEPT]
SIZES = [(375, 500), (500, 600)]


@cache
def cams(device, height, width):
    return in_turns(ROWS, cam_work.__file__, ["cams"], device, height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("row", ROWS)
def bench_cams(record, device, row, height, width):
    measured = cams(device, height, width)[row]
    record(
        measured.seconds,
        group=f"CAMs, DeiT-S, {width}x{height}, 2 of {CLASSES} classes",
        row=row,
        baseline=row == "published",
        error=measured.error,
        within=1e-5 * measured.scale,
        peak=measured.peak,
        dtype="float32",
    )
