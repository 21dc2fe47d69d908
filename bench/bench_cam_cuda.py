"""Statistics and fusion of all maps of a photograph on a GPU.

`published` is the published way, `eager` the definition in PyTorch's own operators, `compiled` the
same through torch.compile. `bench_cam.py` has whole CAMs, `bench_training_cuda.py` training.
"""

import pytest
import torch
from floor import floor_seconds, fusion_work

from weaktr.ops import fuse_heads, head_stats
from weaktr.ops.attention_maps import full_precision

CLASSES, PRESENT = 20, 4
DEPTH, HEADS, WIDTH = 12, 6, 64
GRID = (31, 37)  # 500 x 600
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def maps_of_an_image(dtype):
    """q, k [1, M, N, d], weights [1, M], coarse [1, C', P]."""
    generator = torch.Generator().manual_seed(0)
    patches = GRID[0] * GRID[1]
    shape = (2, 1, DEPTH * HEADS, CLASSES + patches, WIDTH)
    q, k = torch.randn(shape, generator=generator).to("cuda", dtype)
    weights = torch.rand(1, DEPTH * HEADS, generator=generator).cuda()
    return q, k, weights, torch.rand(1, PRESENT, patches, generator=generator).cuda()


def spread(q, k, weights, coarse, backend):
    """Refined CAM by our ops: [1, C', P]."""
    stats = head_stats(
        q,
        k,
        num_classes=CLASSES,
        num_patches=coarse.shape[2],
        column_means=False,
        backend=backend,
    )
    share = weights / weights.shape[1]
    cross = torch.einsum("bm,bmcj->bcj", share, stats.class_rows[:, :, :PRESENT])
    values = (cross * coarse).transpose(1, 2)
    return fuse_heads(q, k, stats.lse, weights, values, backend=backend).transpose(1, 2)


def spread_literally(q, k, weights, coarse):
    """The definition, with every map in memory once."""
    q, k = full_precision(q), full_precision(k)
    attention = torch.softmax(q @ k.transpose(2, 3) * WIDTH**-0.5, -1)
    fused = torch.einsum("bm,bmij->bij", weights / weights.shape[1], attention)
    cross, patch = fused[:, :PRESENT, CLASSES:], fused[:, CLASSES:, CLASSES:]
    return torch.einsum("bij,bcj->bci", patch, cross * coarse)


def spread_as_published(q, k, weights, coarse):
    """Layers' maps stacked, cloned and permuted, weighted twice."""
    layers = [x.unflatten(1, (DEPTH, HEADS)).unbind(1) for x in (q, k)]
    maps = [
        torch.softmax(a @ b.transpose(2, 3) * WIDTH**-0.5, -1) for a, b in zip(*layers, strict=True)
    ]
    stacked = torch.stack(maps).detach().clone()  # [K, B, H, N, N]
    stacked = stacked.permute(1, 2, 0, 3, 4).contiguous().flatten(1, 2)
    by_head = weights.unflatten(1, (DEPTH, HEADS)).transpose(1, 2).flatten(1)[:, :, None, None]
    cross = (stacked * by_head).mean(1)[:, :CLASSES, CLASSES:]
    patch = (stacked * by_head).mean(1)[:, CLASSES:, CLASSES:]
    return (patch[:, None] @ (cross[:, :PRESENT] * coarse)[..., None]).squeeze(-1)


SPREADS = {
    "published": spread_as_published,
    "eager": spread_literally,
    "compiled": torch.compile(spread_literally, fullgraph=True),
    "torch": lambda *maps: spread(*maps, "torch"),
    "triton": lambda *maps: spread(*maps, "triton"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", SPREADS)
def bench_fusion(measure, row, dtype):
    maps = maps_of_an_image(DTYPES[dtype])
    expected = spread_literally(*(x.double() for x in maps))
    work = fusion_work(maps[0], CLASSES, GRID[0] * GRID[1], PRESENT)
    SPREADS[row](*maps)  # compiles, and finds the fastest configuration
    measure(
        lambda: SPREADS[row](*maps),
        group=f"head_stats + fuse_heads, DeiT-S, 500x600, C{CLASSES} M{DEPTH * HEADS}, {dtype}",
        row=row,
        baseline=row == "published",
        expected=expected,
        within=(1e-5 if dtype == "float32" else 0.05) * float(expected.max()),
        floor=floor_seconds(work, DTYPES[dtype]),
        dtype=dtype,
    )
