"""Stage 1 on a GPU: statistics and fusion of all maps, the training step, and where its time goes.

Run by `bench/gpu.sh`; `bench_cam.py` has whole CAMs. `published` is the published way, `eager` the
definition in PyTorch's own operators, `compiled` a row through torch.compile.
"""

import published
import pytest
import torch
from floor import floor_seconds, fusion_work, training_work
from torch.nn.functional import multilabel_soft_margin_loss

from weaktr.config import CamModelConfig
from weaktr.models import CamModel
from weaktr.ops import fuse_heads, head_stats
from weaktr.ops.attention_maps import full_precision

BACKBONE = "deit_small_patch16_224"
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


# ---- training -----------------------------------------------------------------------------------


def model_and_batch(batch=64, side=224):
    torch.manual_seed(0)
    config = CamModelConfig(BACKBONE, weights=None, drop_path=0.0)
    model = CamModel(config, CLASSES).cuda().train()
    labels = torch.zeros(batch, CLASSES, device="cuda")
    labels[:, [3, 14]] = 1
    return model, torch.randn(batch, 3, side, side, device="cuda"), labels


def losses(forward, images, labels):
    logits = forward(images)
    return sum(multilabel_soft_margin_loss(x.float(), labels) for x in logits)


def training_step(model, row):
    """(images, labels) -> loss: forward, backward under autocast, the way of a row."""

    def loss_of(images, labels):
        if row.startswith("published"):
            return losses(lambda x: published.cam_forward(model, x), images, labels)
        return losses(model, images, labels)

    if row.endswith("compiled"):
        loss_of = torch.compile(loss_of, fullgraph=True)

    def step(images, labels):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(images, labels)
        loss.backward()
        return loss.detach()

    return step


@pytest.mark.parametrize("row", ["published", "published, compiled", "weaktr", "weaktr, compiled"])
def bench_training(measure, row):
    model, images, labels = model_and_batch()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        work = training_work(model.vit, images)
    expected = losses(model, images, labels).detach()  # in float32
    step = training_step(model, row)
    step(images, labels)
    measure(
        lambda: step(images, labels),
        group=f"stage 1 training, DeiT-S, batch {len(images)}, 224x224, bfloat16 autocast",
        row=row,
        baseline=row == "published",
        expected=expected,
        within=0.02 * float(expected),
        floor=floor_seconds(work, torch.bfloat16),
        items=len(images),
        dtype="bfloat16",
    )


def parts(model, images, labels):
    """Name -> what to time of a training step: the step, then what it consists of.

    The share of "pooling and regrouping" decides whether it gets a kernel of its own.
    """
    tokens, _, rope = model.vit.embed(images)
    layer = model.vit.run_block(0, tokens, rope)
    attended, q, k = (x.detach() for x in (layer.attended, layer.q, layer.k))
    patches = tokens.shape[1] - CLASSES
    features = torch.randn(len(images), DEPTH, HEADS, WIDTH, device="cuda")

    def backbone():
        model.zero_grad(set_to_none=True)
        model.vit(images).float().mean().backward()

    def statistics():
        for _ in range(DEPTH):
            head_stats(q, k, num_classes=CLASSES, num_patches=patches)

    def pooling():
        return torch.stack([model.pooled(attended) for _ in range(DEPTH)], 1)

    return {
        "whole step": lambda: losses(model, images, labels).backward(),
        "backbone, forward and backward": backbone,
        "head_stats of all layers": statistics,
        "pooling of features": pooling,
        "fusion weights": lambda: model.fusion(features).sum().backward(),
    }


@pytest.mark.parametrize("row", range(5))
def bench_parts_of_training(measure, row):
    model, images, labels = model_and_batch()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        name, part = list(parts(model, images, labels).items())[row]

    def call():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            part()
        return torch.zeros(())  # the values are compared in `bench_training`

    measure(
        call,
        group="stage 1 training, DeiT-S, batch 64, 224x224, bfloat16 autocast: parts",
        row=name,
        baseline=row == 0,
        expected=torch.zeros(()),
        within=0.0,
        items=len(images),
        dtype="bfloat16",
    )
