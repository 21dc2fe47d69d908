"""`fuse_heads` with the maps of DeiT-S: C++ beside plain PyTorch, and beside all maps in memory."""

import shutil
from functools import partial

import pytest
import torch

from weaktr.ops import fuse_heads

MAPS, WIDTH, CLASSES, PRESENT = 72, 64, 20, 2
#: Images and patches: 500 x 375, 600 x 500, a training batch of 224 x 224.
WORK = [(1, 713), (1, 1147), (8, 196)]


def inputs(batch, patches, device):
    """q, k [B, M, N, d], lse [B, M, N], weights [B, M], values [B, P, C']."""
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, MAPS, CLASSES + patches, WIDTH, device=device)
    lse = (q @ k.mT * WIDTH**-0.5).logsumexp(-1)
    weights = torch.rand(batch, MAPS, device=device)
    return q, k, lse, weights, torch.rand(batch, patches, PRESENT, device=device)


def with_all_maps(q, k, lse, weights, values):
    """The same from softmax maps that all lie in memory at once."""
    maps = torch.softmax(q @ k.mT * WIDTH**-0.5, -1)[:, :, CLASSES:, CLASSES:]
    return torch.einsum("bm,bmij->bij", weights / MAPS, maps) @ values


@pytest.mark.parametrize(("batch", "patches"), WORK)
@pytest.mark.parametrize("row", ["cpu", "torch", "all maps", "all maps, compiled"])
def bench_fuse_heads(measure, device, row, batch, patches):
    if row == "cpu":
        pytest.importorskip("weaktr._native")
        if device != "cpu":
            pytest.skip("needs tensors on the CPU")
    way = partial(fuse_heads, backend=row)
    if row.startswith("all maps"):
        way = with_all_maps
    if row.endswith("compiled"):
        if device == "cpu" and not shutil.which("c++"):
            pytest.skip("torch.compile needs a C++ compiler")
        way = torch.compile(way, fullgraph=True, dynamic=False)
    given = inputs(batch, patches, device)
    way(*given)  # compiles
    measure(
        lambda: way(*given),
        group=f"fuse_heads, {batch} x {patches} patches, {MAPS} maps of width {WIDTH}",
        row=row,
        baseline=row == "torch",
        expected=fuse_heads(*given, backend="torch"),
        within=1e-5,
        items=batch,
        dtype="float32",
    )
