"""Training through torch.compile: one graph a stage, the same losses, plain names in checkpoints.

The compiler's back end is "aot_eager" (forward and backward as one graph each, run by PyTorch):
generating C++ takes minutes. Code is generated on a GPU only.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.models import small
from tests.stages import tiny
from tests.tolerances import assert_close, assert_golden
from weaktr.config import TrainSegConfig
from weaktr.inference.head_inputs import as_computed
from weaktr.models.cam import HeadInputs
from weaktr.ops import collision_cross_entropy
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.train_cam import cam_losses
from weaktr.training.segmenter_losses import segmenter_losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"image_size": 32, "patch_size": 8, "backbone_args": tiny.VIT}


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `torch.compile` was handed; nothing is generated from them."""
    torch.compiler.reset()
    dynamo_graphs = []

    def counting(graph, inputs, **settings):
        dynamo_graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs, **settings)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    yield dynamo_graphs
    torch.compiler.reset()


def gradients(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


def assert_same_step(model, loss_of, *batch):
    """Loss and gradients of `loss_of(model, *batch)`, compiled as one graph and not."""
    step = torch.compile(lambda *batch: loss_of(model, *batch), fullgraph=True)
    results = []
    for run in (step, lambda *batch: loss_of(model, *batch)):
        model.zero_grad(set_to_none=True)
        loss = run(*batch)
        loss.backward()
        results.append([loss.detach(), *gradients(model)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize(
    "family",
    [
        "deit_small_patch16_224",
        pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.rare),
    ],
)
def test_stage_1_is_one_graph(family, graphs):
    model = small.cam_model(family, 4, reduction=2.0, **SMALL).to(DEVICE).train()
    images, targets = torch.randn(2, 3, 32, 40, device=DEVICE), torch.eye(4, device=DEVICE)[[0, 2]]

    def loss_of(model, images, targets):
        return sum(cam_losses(model(images), targets).values())

    assert_same_step(model, loss_of, images, targets)
    assert len(graphs) == 1


@pytest.mark.parametrize("decoder", ["mask_transformer", "linear"])
def test_stage_2_is_one_graph(decoder, graphs):
    model = small.segmenter(
        "deit_small_patch16_224", 5, decoder=decoder, drop_path=0.0, dropout=0.0, **SMALL
    )
    model = model.to(DEVICE).train()
    images = torch.randn(2, 3, 32, 40, device=DEVICE)
    labels = torch.randint(0, 5, (2, 32, 40), device=DEVICE)

    def loss_of(model, images, labels):
        return model.loss(images, labels, start_value=9.0, tile=12).loss

    assert_same_step(model, loss_of, images, labels)
    assert len(graphs) == 1


@pytest.mark.parametrize("is_frozen", [pytest.param(False, marks=pytest.mark.rare), True])
def test_soft_labels_and_an_image_head_are_one_graph(is_frozen, graphs):
    model = small.segmenter(
        "deit_small_patch16_224", 5, decoder="linear", image_head=True, drop_path=0.0, **SMALL
    )
    model = model.to(DEVICE).train()
    if is_frozen:
        model.freeze_encoder()
    images = torch.randn(2, 3, 32, 40, device=DEVICE)
    shares = torch.randn(2, 5, 4, 5, device=DEVICE).softmax(1)
    shown = torch.tensor([[1.0, 0, 0, -1]] * 2, device=DEVICE)
    inside = torch.eye(5, device=DEVICE)[:4].expand(2, 4, 5)

    settings = TrainSegConfig(loss="collision")

    def loss_of(model, *batch):
        losses = segmenter_losses(model, settings, collision_cross_entropy, *batch)
        return sum(losses.values())

    assert_same_step(model, loss_of, images, shares, shown, inside)
    assert len(graphs) == 1


@pytest.mark.skipif(DEVICE == "cpu", reason="generating C++ takes minutes; needs a GPU")
def test_generated_code_computes_the_same():
    model = small.cam_model("deit_small_patch16_224", 4, reduction=2.0, **SMALL).to(DEVICE)
    images = torch.randn(2, 3, 32, 40, device=DEVICE)
    compiled = torch.compile(model.__call__, fullgraph=True)
    for actual, expected in zip(compiled(images), model(images), strict=True):
        assert_golden(actual, expected)


def test_stage_1_on_what_is_kept_of_a_frozen_backbone_is_one_graph(graphs):
    model = small.cam_model("deit_small_patch16_224", 4, reduction=2.0, **SMALL).to(DEVICE)
    model.vit.requires_grad_(False)
    with torch.no_grad():
        kept = model.head_inputs(torch.randn(2, 3, 32, 40, device=DEVICE))
    targets = torch.eye(4, device=DEVICE)[[0, 2]]

    def loss_of(model, *batch):
        *parts, targets = batch
        return sum(cam_losses(model.outputs(as_computed(HeadInputs(*parts))), targets).values())

    assert_same_step(model, loss_of, *kept, targets)
    assert len(graphs) == 1


def test_a_compiled_run_ends_like_another(graphs, tmp_path):
    """Both stages, `compile` set: one graph each, and weights by their own names."""
    root = tiny.squares(tmp_path / "squares", count=8)
    steady = {"drop_path": 0.0}
    weights = {}
    for compile in (True, False):
        recipe = tiny.recipe(
            root,
            device=DEVICE,
            cam_model=steady,
            seg_model=steady | {"dropout": 0.0},
            train_cam={"compile": compile, "amp": "none"},
            train_seg={"compile": compile},
        )
        for stage in ("train_cam", "label", "train_seg"):
            run_recipe(recipe, tmp_path / str(compile), only=stage)
        files = (
            tmp_path / str(compile) / s / "model.safetensors" for s in ("train_cam", "train_seg")
        )
        weights[compile] = [load_file(file) for file in files]
        assert len(graphs) == 2
    for compiled, plain in zip(weights[True], weights[False], strict=True):
        assert compiled.keys() == plain.keys()
        for name, weight in plain.items():
            assert_close(compiled[name], weight, "float32")
