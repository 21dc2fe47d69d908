"""Inputs for the ops on attention maps, and the literal softmax that they are held to."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.models import small
from tests.models.test_families import CAM
from tests.tolerances import assert_golden
from weaktr.models import cam

#: B, H, C, P, d. Odd on purpose: one patch, more classes than patches, widths of no power of two.
SHAPES = [(1, 1, 1, 1, 8), (2, 3, 4, 37, 16), (1, 2, 70, 5, 24), (3, 2, 20, 49, 72)]


def home(backend: str) -> torch.device:
    """Where a backend is tested: Triton on the GPU if there is one, all others on the CPU."""
    on_gpu = backend == "triton" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def exact_dtype(backend: str) -> torch.dtype:
    """The widest a backend takes."""
    return torch.float64 if backend == "torch" else torch.float32


def tolerance_row(backend: str) -> str:
    return str(exact_dtype(backend)).removeprefix("torch.")


def attention_inputs(
    batch: int,
    heads: int,
    classes: int,
    patches: int,
    dim: int,
    *,
    extra: int = 0,
    backend: str = "torch",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """q and k of C + extra + P tokens, where the backend is tested; by default in its widest."""
    generator = torch.Generator().manual_seed(batch + 7 * patches)
    tokens = classes + extra + patches
    q, k = torch.randn(2, batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
    options = {"dtype": dtype or exact_dtype(backend), "device": home(backend)}
    return q.to(**options), k.to(**options)


def literal(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) in float64."""
    return torch.softmax(q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5, -1)


def literal_lse(q: Tensor, k: Tensor) -> Tensor:
    """Row log-sum-exp in float64."""
    return (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).logsumexp(-1)


def strided(x: Tensor) -> Tensor:
    """The same numbers, with no axis contiguous and gaps of NaN between them."""
    holder = x.new_full([2 * size for size in reversed(x.shape)], float("nan"))
    view = holder[tuple(slice(None, None, 2) for _ in x.shape)].permute(*reversed(range(x.ndim)))
    return view.copy_(x)


def _configs() -> tuple[Mapping[str, int], ...]:
    """Launch configurations of the kernels."""
    try:
        from weaktr.kernels.common import CONFIGS
    except ImportError:  # the tests that use them are skipped with the reason
        return ()
    return CONFIGS


def _config_name(value: object) -> str:
    """Of a configuration or a dtype, for the names of tests."""
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


#: Parametrizes a test by `dtype` and `config`.
every_config = pytest.mark.parametrize(
    ("dtype", "config"),
    list(product((torch.bfloat16, torch.float32), _configs())),
    ids=_config_name,
)


def check_that_training_takes_statistics(
    attention: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CAM model gives the same with `attention`, and has no need of `head_stats` then."""
    model = small.cam_model("deit_small_patch16_224", 3, attention="sdpa", **CAM).to(device)
    images = torch.randn(2, 3, 64, 64, device=device)
    expected = model(images)
    model.vit.attention = attention
    monkeypatch.setattr(cam, "head_stats", None)
    for actual, wanted in zip(model(images), expected, strict=True):
        assert_golden(actual, wanted)
