"""Three optimiser steps and the schedules against the published code: goldens T and D_lr."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler

from tests.parity import recipe
from tests.parity.test_cam import model_of as cam_model_of
from tests.parity.test_segmenter import model_of as segmenter_of
from weaktr.models.released.state_dicts import cam_names, segmenter_names
from weaktr.training.optimizers import (
    PolynomialSchedule,
    cam_optimizer,
    segmenter_groups,
    segmenter_optimizer,
)

#: a hundredth of one AdamW step: where a gradient is near AdamW's epsilon, the step divides two
#: rounding errors, so single elements move by a small share of lr = 1e-3
PARAMETER_ATOL = 1e-5


def check_parameters(model, expected, sums):
    parameters = model.state_dict()
    for key, value in expected.items():
        actual = parameters[key].clone()
        if key.endswith("attn.qkv.bias"):  # the key bias has no true gradient: noise ± lr
            third = len(value) // 3
            actual[third : 2 * third] = value[third : 2 * third]
        torch.testing.assert_close(actual, value, rtol=1e-5, atol=PARAMETER_ATOL)
    for key, (total, squares) in sums.items():
        if not key.endswith("attn.qkv.bias"):
            tensor = parameters[key].double()
            assert tensor.square().sum().item() == pytest.approx(squares, rel=1e-5), key
            scale = tensor.abs().sum().item()
            assert tensor.sum().item() == pytest.approx(total, abs=1e-5 * scale + 1e-6), key


def sums_of(case, rename):
    stats = recipe.SHAPES["T_train_steps"][case]["after_stats"]
    stored = {k: torch.tensor([v["sum"], v["sq"]], dtype=torch.float64) for k, v in stats.items()}
    return {k: v.tolist() for k, v in rename(stored).items()}


def after(case, rename):
    stored, prefix = recipe.arrays("T_train_steps"), f"{case}.after."
    return rename({k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)})


def test_stage_1_training_steps():
    golden = recipe.arrays("T_train_steps")
    model = cam_model_of("A_a2_voc20_max").train()
    optimizer = cam_optimizer(model, lr=1e-3, weight_decay=0.03)
    assert len(optimizer.param_groups) == 1
    history = []
    for step in range(3):
        output = model(recipe.rnd(f"train1.x{step}", (2, 3, 64, 64)))
        losses = [
            F.multilabel_soft_margin_loss(logits, golden[f"stage1.target{step}"])
            for logits in output
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        history.append([loss.item() for loss in losses])
    expected = recipe.SHAPES["T_train_steps"]["stage1"]["avg_stats"]
    means = torch.tensor(history).mean(0).tolist()
    for mean, key in zip(means, ("cls_loss", "pat_loss", "attn_loss"), strict=True):
        assert mean == pytest.approx(expected[key], rel=1e-5)
    check_parameters(model, after("stage1", cam_names), sums_of("stage1", cam_names))


@pytest.mark.parametrize("start_value", [1000.0, 1.2])
def test_stage_2_training_steps(start_value):
    case = f"stage2.start{start_value}"
    golden, facts = recipe.arrays("T_train_steps"), recipe.SHAPES["T_train_steps"][case]
    model = segmenter_of("D_d1_deit_mask")  # eval mode: the golden has no dropout
    optimizer = segmenter_optimizer(model, lr=1e-2, encoder_lr=0.1)
    schedule = PolynomialSchedule(optimizer, t_initial=6, power=0.9, lr_min=1e-5, t_in_epochs=False)
    for step in range(3):
        schedule.step_update(step)
        images, labels = recipe.rnd(f"train2.x{step}", (2, 3, 64, 64)), golden[f"stage2.gt{step}"]
        result = model.loss(images, labels, start_value=start_value, tile=16)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        mean, clipped = facts["mean_and_clipped_loss_per_step"][step]
        assert result.mean_loss.item() == pytest.approx(mean, rel=1e-5)
        assert result.loss.item() == pytest.approx(clipped, rel=1e-5)
    check_parameters(model, after(case, segmenter_names), sums_of(case, segmenter_names))


def rates_of(schedule, positions):
    """float64 [positions, groups]; visited backwards, for a schedule keeps no state."""
    rates = []
    for position in reversed(positions):
        schedule.step_update(position)
        rates.insert(0, [group["lr"] for group in schedule.optimizer.param_groups])
    return torch.tensor(rates, dtype=torch.float64)


def test_cosine_schedule_is_one_epoch_late_as_published():
    facts = recipe.SHAPES["D_lr_schedules"]["stage1_cosine"]
    batches = 165  # an epoch; the schedule counts them
    schedule = CosineLRScheduler(
        cam_optimizer(cam_model_of("A_a2_voc20_max"), facts["base_lr"]),
        t_initial=facts["epochs"] * batches,
        lr_min=facts["min_lr"],
        warmup_t=facts["warmup_epochs"] * batches,
        warmup_lr_init=facts["warmup_lr"],
        t_in_epochs=False,
    )
    expected = recipe.arrays("D_lr_schedules")["stage1_cosine.lr_used_per_epoch"]
    late = [max(0, epoch - 1) * batches for epoch in range(len(expected))]
    actual = rates_of(schedule, late).squeeze(1)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", ["main", "layerdecay0.9", "warmup10", "past_end", "no_assigner"])
def test_polynomial_schedule_and_layer_groups(case):
    facts = recipe.SHAPES["D_lr_schedules"][case]
    expected = recipe.arrays("D_lr_schedules")[f"{case}.lr_used"]
    optimizer = segmenter_optimizer(
        segmenter_of("D_d1_deit_mask"),
        facts["lr"],
        encoder_lr=facts["enc_lr"],
        layer_decay=facts["layer_decay"],
    )
    schedule = PolynomialSchedule(
        optimizer,
        t_initial=facts["iter_max"],
        lr_min=facts["min_lr"],
        power=facts["power"],
        warmup_t=facts["iter_warmup"],
        t_in_epochs=False,
    )
    rates = rates_of(schedule, range(len(expected)))
    group_of = {n: i for i, g in enumerate(optimizer.param_groups) for n in g["names"]}
    first = 1 if facts["iter_warmup"] else 0  # published: the first warm-up step at full rate
    last = facts["iter_max"] + 1  # published: past the end the rate collapses
    for index, published in enumerate(facts["groups"]):
        names = segmenter_names(dict.fromkeys(published["params"], torch.zeros(0)))
        for group in {group_of[name] for name in names}:
            torch.testing.assert_close(
                rates[first:last, group], expected[first:last, index], rtol=1e-9, atol=0
            )
    scales = torch.tensor([g["lr_scale"] for g in optimizer.param_groups], dtype=torch.float64)
    assert rates[last:].eq(facts["min_lr"] * scales).all()


def test_weight_decay_goes_to_matrices_only():
    groups = segmenter_groups(
        segmenter_of("D_d1_deit_mask"), encoder_lr=0.1, layer_decay=1.0, weight_decay=0.01
    )
    decayed = {n for g in groups if g["weight_decay"] for n in g["names"]}
    assert "vit.blocks.0.attn.qkv.weight" in decayed and "decoder.proj_patch" in decayed
    assert not any(n.endswith((".bias", "pos_embed", "cls_token", "cls_emb")) for n in decayed)


def test_a_backbone_can_be_slowed_or_frozen():
    model = cam_model_of("A_a2_voc20_max").train()
    fast, slow = cam_optimizer(model, lr=1e-3, backbone_lr=0.1).param_groups
    assert (fast["lr"], slow["lr"]) == (1e-3, pytest.approx(1e-4))
    assert any(p is model.vit.cls_token for p in fast["params"])
    (only,) = cam_optimizer(model, lr=1e-3, backbone_lr=0.0).param_groups
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(only["params"]) == len(trained)
    assert {n.split(".")[0] for n in trained} == {"vit", "head", "fusion"}
    assert "vit.cls_token" in trained and "vit.pos_embed" not in trained
