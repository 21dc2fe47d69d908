"""Training steps of both stages on a GPU, and where a step of stage 1 spends its time.

`published` is the published way, `compiled` a row through torch.compile. All run under autocast to
bfloat16; the error is against weaktr in float32.
"""

import published
import pytest
import torch
from floor import floor_seconds, training_work
from torch.nn.functional import multilabel_soft_margin_loss

from weaktr.config import CamModelConfig, SegModelConfig
from weaktr.models import CamModel, Segmenter
from weaktr.ops import head_stats

BACKBONE = "deit_small_patch16_224"
CLASSES, LABELS = 20, 21
PATCH, START = 120, 9.0
ROWS = ["published", "published, compiled", "weaktr", "weaktr, compiled"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def in_half():
    return torch.autocast("cuda", dtype=torch.bfloat16)


def training_step(model, loss_of, row):
    """(images, labels) -> loss: forward and backward, the way of a row."""
    if row.endswith("compiled"):
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def step(images, labels):
        model.zero_grad(set_to_none=True)
        with in_half():
            loss = loss_of(images, labels)
        loss.backward()
        return loss.detach()

    return step


def measure_training(measure, row, model, images, labels, loss_of, *, group, floor):
    """Time steps; `loss_of` is a row's, its result in float32 what is right."""
    expected = loss_of("weaktr", images, labels).detach()
    step = training_step(model, lambda *batch: loss_of(row, *batch), row)
    for _ in range(3):  # compiles, and chooses configurations
        step(images, labels)
    measure(
        lambda: step(images, labels),
        group=group,
        row=row,
        baseline=row == "published",
        expected=expected,
        within=0.02 * float(expected),
        floor=floor,
        items=len(images),
        dtype="bfloat16",
    )


# ---- stage 1 ------------------------------------------------------------------------------------


def cam_model_and_batch(batch=64, side=224):
    torch.manual_seed(0)
    config = CamModelConfig(BACKBONE, weights=None, drop_path=0.0)
    model = CamModel(config, CLASSES).cuda().train()
    labels = torch.zeros(batch, CLASSES, device="cuda")
    labels[:, [3, 14]] = 1
    return model, torch.randn(batch, 3, side, side, device="cuda"), labels


def cam_loss(model, row, images, labels):
    is_published = row.startswith("published")
    logits = published.cam_forward(model, images) if is_published else model(images)
    return sum(multilabel_soft_margin_loss(x.float(), labels) for x in logits)


@pytest.mark.parametrize("row", ROWS)
def bench_cam_training(measure, row):
    model, images, labels = cam_model_and_batch()
    with in_half():
        work = training_work(model.vit, images)
    measure_training(
        measure,
        row,
        model,
        images,
        labels,
        lambda row, *batch: cam_loss(model, row, *batch),
        group=f"stage 1 training, DeiT-S, batch {len(images)}, 224x224, bfloat16 autocast",
        floor=floor_seconds(work, torch.bfloat16),
    )


def parts(model, images, labels):
    """Name -> what to time of a training step: the step, then what it consists of."""
    batch = model.vit.embed(images)
    layer = model.vit.run_block(0, batch.tokens, batch, with_lse=True)
    attended, q, k, lse = (x.detach() for x in (layer.attended, layer.q, layer.k, layer.lse))
    patches, depth = batch.patches[0], len(model.vit.blocks)
    heads = model.vit.num_heads
    features = torch.randn(len(images), depth, heads, q.shape[-1], device="cuda")

    def backbone():
        model.zero_grad(set_to_none=True)
        model.vit(images).float().mean().backward()

    def statistics():
        for _ in range(depth):
            head_stats(q, k, num_classes=CLASSES, num_patches=patches, lse=lse)

    def pooling():
        return torch.stack([model.pooled(attended) for _ in range(depth)], 1)

    return {
        "whole step": lambda: cam_loss(model, "weaktr", images, labels).backward(),
        "backbone, forward and backward": backbone,
        "head_stats of all layers": statistics,
        "pooling of features": pooling,
        "fusion weights": lambda: model.fusion(features).sum().backward(),
    }


@pytest.mark.parametrize("row", range(5))
def bench_parts_of_cam_training(measure, row):
    model, images, labels = cam_model_and_batch()
    with in_half():
        name, part = list(parts(model, images, labels).items())[row]

    def call():
        with in_half():
            part()
        return torch.zeros(())  # the values are compared in `bench_cam_training`

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


# ---- stage 2 ------------------------------------------------------------------------------------


def segmenter_loss(model, row, images, labels):
    if not row.startswith("published"):
        return model.loss(images, labels, start_value=START, tile=PATCH).loss
    return published.clipped_loss(published.patch_logits(model, images), labels, PATCH, START)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "published, compiled"])
def bench_segmenter_training(measure, row, batch=16, side=480):
    torch.manual_seed(0)
    # without dropout, so that both ways see the same network
    config = SegModelConfig(BACKBONE, weights=None, image_size=side, drop_path=0.0, dropout=0.0)
    model = Segmenter(config, LABELS).cuda().train()
    images = torch.randn(batch, 3, side, side, device="cuda")
    labels = torch.randint(LABELS, (batch, side, side), device="cuda")
    with in_half():
        work = training_work(model.vit, images)
    measure_training(
        measure,
        row,
        model,
        images,
        labels,
        lambda row, *batch: segmenter_loss(model, row, *batch),
        group=f"stage 2 training, DeiT-S, batch {batch}, {side}x{side}, bfloat16 autocast",
        floor=floor_seconds(work, torch.bfloat16),
    )
