"""The one table of tolerances. A test names a row; nothing else sets a number.

`actual` passes if |actual - expected| <= atol + rtol · |expected| everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    rtol: float
    atol: float


TOLERANCES = {
    # float32 outputs against the published code's; its own noise floor is 2.4e-6 (order 1 to 10)
    "golden": Tolerance(1e-5, 2.4e-6),
    # gradients against the published code's; noise floor 1e-7
    "golden_gradient": Tolerance(1e-5, 1e-7),
    # marginals Q of the dense CRF against pydensecrf, whose lattice is the same to rounding
    "crf_marginals": Tolerance(0.0, 1e-4),
    # the float32 lattice against float64 matrices; values of order 1
    "lattice": Tolerance(1e-4, 1e-5),
    # the lattice's filter against the exact Gaussian, values spread over 0 to 3
    "gaussian_approximation": Tolerance(0.0, 0.1),
    # what was kept in float16, values of order 1; two of its units in the last place near zero
    "float16": Tolerance(2**-10, 2e-6),
    # gradients on such values, as shares of the largest: they are sums in which values cancel
    "float16_gradient": Tolerance(0.0, 2**-11),
    # losses and weights of a few steps on what was kept in float16, of order 1
    "float16_training": Tolerance(1e-4, 1e-4),
    # likewise in bf16, whose own units in the last place are a hundredth
    "bf16_training": Tolerance(2e-3, 1e-3),
    # two ways of computing the same thing in float32 or float64
    "float32": Tolerance(1e-5, 1e-6),
    "float64": Tolerance(1e-10, 1e-12),
}


def solution_error(condition: float) -> float:
    """Largest error of the solution of linear equations in float32, relative to its magnitude.

    Its residual is below 1e-6 of the right side; sums and products round by 1.2e-7.
    """
    return 2.5e-7 * condition


#: Share of pixels, at least, whose CRF label is the one of pydensecrf.
CRF_LABEL_AGREEMENT = 0.999


def assert_close(actual: torch.Tensor, expected: torch.Tensor, row: str) -> None:
    """`torch.testing.assert_close` with the tolerance of `row`; dtypes may differ."""
    rtol, atol = TOLERANCES[row]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)


#: The parity bar against the published code in float32, relative to an array's largest magnitude.
GOLDEN_RELATIVE = 1e-5
#: A hundredth of the published code's own noise floor for gradients (1e-7), for those near zero.
GRADIENT_FLOOR = 1e-9


def assert_golden(actual: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> None:
    """max |actual - expected| <= 1e-5 · max |expected| + floor, for every array of the goldens."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    bound = GOLDEN_RELATIVE * expected.abs().max().item() + floor
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=bound, check_dtype=False)
