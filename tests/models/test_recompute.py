"""Blocks that are computed again for the gradient: the same training in less memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.models import small
from tests.stages import tiny
from tests.tolerances import assert_close
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.train_cam import cam_losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEPTH = 4
SMALL = {"image_size": 32, "patch_size": 8, "backbone_args": tiny.VIT | {"depth": DEPTH}}
FAMILIES = ["deit_small_patch16_224", "vit_small_patch16_dinov3", "eva02_small_patch14_224"]


def stage1(family=FAMILIES[0]):
    """A model and the losses of a batch."""
    model = small.cam_model(family, 4, reduction=2.0, drop_path=0.4, **SMALL).to(DEVICE).train()
    images, targets = torch.randn(2, 3, 32, 40, device=DEVICE), torch.eye(4, device=DEVICE)[[0, 2]]
    return model, lambda: sum(cam_losses(model(images), targets).values())


def stage2(decoder="mask_transformer", frozen=False):
    """A model and the losses of a batch."""
    settings = {"decoder": decoder, "drop_path": 0.4, "dropout": 0.3}
    model = small.segmenter(FAMILIES[0], 5, **settings, **SMALL).to(DEVICE).train()
    if frozen:
        model.freeze_encoder()
    images = torch.randn(2, 3, 32, 40, device=DEVICE)
    labels = torch.randint(0, 5, (2, 32, 40), device=DEVICE)
    return model, lambda: model.loss(images, labels, start_value=9.0, tile=12).loss


WORKS = {
    **{family: lambda family=family: stage1(family) for family in FAMILIES},
    "mask_transformer": stage2,
    "linear": lambda: stage2("linear"),
    "frozen": lambda: stage2(frozen=True),
}


def step(model, losses, recompute):
    """The loss and all gradients, and the bytes that autograd kept beside parameters."""
    model.recompute_blocks(recompute)
    model.zero_grad(set_to_none=True)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held, or its place would be taken again
        return x

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = losses()
    size = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], size


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", WORKS)
def test_the_same_step_to_the_last_bit_in_less_memory(name, amp):
    torch.manual_seed(0)
    model, losses = WORKS[name]()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=amp):
        plain, before = step(model, losses, recompute=False)
        again, after = step(model, losses, recompute=True)
    assert len(plain) == len(again) > 1
    for actual, expected in zip(again, plain, strict=True):
        assert torch.equal(actual, expected)
    assert after < before * 0.5


def test_random_numbers_after_a_step_are_those_of_a_plain_one():
    drawn = []
    for recompute in (False, True):
        torch.manual_seed(0)
        step(*stage1(), recompute)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("work", [stage1, pytest.param(stage2, marks=pytest.mark.rare)])
def test_one_compiled_graph(work):
    """Without dropout, of which a compiled graph draws other numbers."""
    torch.compiler.reset()
    model, losses = work()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if hasattr(module, "attn_drop"):
            module.attn_drop.p = 0.0
    plain, _ = step(model, losses, recompute=False)
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    model.recompute_blocks(True)
    model.zero_grad(set_to_none=True)
    loss = compiled()
    loss.backward()
    again = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for actual, expected in zip(again, plain, strict=True):
        assert_close(actual, expected, "float32")
    torch.compiler.reset()


def test_both_trainings_end_with_the_same_weights(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=8)
    weights = []
    for recompute in (False, True):
        change = {"recompute": recompute, "accumulate": 2, "epochs": 1, "batch_size": 2}
        recipe = tiny.recipe(root, device=DEVICE, train_cam=change, train_seg=change)
        out = tmp_path / str(recompute)
        for stage in ("train_cam", "label", "train_seg"):
            run_recipe(recipe, out, only=stage)
        files = (out / stage / "model.safetensors" for stage in ("train_cam", "train_seg"))
        weights.append([load_file(file) for file in files])
    for again, plain in zip(*weights, strict=True):
        assert again.keys() == plain.keys()
        assert all(torch.equal(again[name], weight) for name, weight in plain.items())
