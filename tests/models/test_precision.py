"""Which device models run on, and in which precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.models import small
from tests.models.test_families import CAM
from tests.tolerances import assert_golden
from weaktr.models.cam import HeadInputs
from weaktr.models.precision import amp_type, autocast, choose_device, inference_amp, training_amp

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def as_torch_begins():
    """PyTorch's defaults: TF32 in convolutions, not in products. Afterwards all is as before."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def settings_in_forward(model, images):
    """Whether products and convolutions may be in TF32 while a model's convolutions run."""
    seen = []

    def look(*_):
        backends = torch.backends
        seen.append((backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32))

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(look)
    model(images)
    assert len(seen) == 2  # the patch embedding, the head
    return set(seen)


@pytest.mark.parametrize("asked", [False, True])
def test_float32_is_float32_in_a_forward_pass(as_torch_begins, monkeypatch, asked):
    """With a stand-in for the GPU; a program that has asked for TF32 gets it in both."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("high" if asked else "highest")
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.undo()
    model = small.cam_model("deit_small_patch16_224", 3, **CAM)
    assert settings_in_forward(model, torch.randn(1, 3, 64, 64)) == {(asked, asked)}


def test_without_a_gpu_torch_is_left_as_it_is(as_torch_begins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choose_device("cpu")
    assert torch.backends.cudnn.allow_tf32


@GPU
def test_float32_is_float32_on_a_gpu(as_torch_begins):
    """A whole forward pass; TF32 in any product would be off by 1e-4 or more."""
    model = small.cam_model("deit_small_patch16_224", 3, **CAM).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    device = choose_device("cuda")
    for actual, wanted in zip(model.to(device)(images.to(device)), expected, strict=True):
        assert_golden(actual.cpu(), wanted)


def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch):
    """Stand-ins for a machine with GPUs: events and kernels go to the current device."""
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    for name in ("cuda", "cpu"):
        assert choose_device(name) == torch.device(name)
    assert len(chosen) == 1


MPS = pytest.param(
    "mps", marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
)


@pytest.mark.parametrize(
    "name", ["nonsense", "", "meta", "meta:0", MPS, "hpu", "vulkan", "lazy", "cuda:-1"]
)
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value) and "expected auto, cpu, or cuda" in str(caught.value)


@pytest.mark.parametrize(
    ("amp", "kind", "bf16", "training", "labelling", "inference"),
    [
        ("auto", "cpu", True, "none", None, "bf16"),
        ("auto", "cpu", False, "none", None, "none"),
        ("auto", "cuda", True, "bf16", torch.float16, "fp16"),
        ("auto", "cuda", False, "fp16", torch.float16, "fp16"),
        ("auto", "mps", True, "none", None, "none"),
        ("fast", "cpu", True, "bf16", torch.bfloat16, "bf16"),
        ("fast", "cpu", False, "none", None, "none"),
        ("fast", "cuda", True, "bf16", torch.float16, "fp16"),
        ("fast", "cuda", False, "fp16", torch.float16, "fp16"),
        ("fast", "mps", True, "none", None, "none"),
        ("fp16_on_cuda", "cpu", True, "none", None, "none"),
        ("fp16_on_cuda", "cuda", True, "fp16", torch.float16, "fp16"),
        ("bf16", "cpu", False, "bf16", torch.bfloat16, "bf16"),
        ("none", "cuda", True, "none", None, "none"),
        ("tf32", "cuda", True, "tf32", None, "tf32"),
        ("tf32", "cpu", True, "tf32", None, "tf32"),
    ],
)
def test_precisions(monkeypatch, amp, kind, bf16, training, labelling, inference):
    """On devices with and without bf16 in hardware, in trainings, labelling and of features."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: bf16, raising=False)
    capability = (8, 0) if bf16 else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device(kind)
    assert training_amp(amp, device) == training
    assert amp_type(amp, device) is labelling
    assert inference_amp(amp, device) == inference


def switches():
    """Whether TF32 is on in products and in convolutions."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_lasts_as_long_as_the_computation(as_torch_begins, monkeypatch, asked):
    """Whatever ends it; a program that has asked for TF32 itself keeps it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # without a GPU it warns
    torch.set_float32_matmul_precision("high" if asked else "highest")
    torch.backends.cudnn.allow_tf32 = asked
    with pytest.raises(KeyError), autocast("tf32", torch.device("cuda")):
        assert switches() == (True, True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"  # as our own kernels ask
        raise KeyError
    assert switches() == (asked, asked)
    for amp, kind in (("none", "cuda"), ("bf16", "cuda"), ("tf32", "cpu")):
        with autocast(amp, torch.device(kind)):
            assert switches() == (asked, asked)


def test_fine_logits_of_many_patches_are_right_in_fp16():
    """Attention to one of 1,600 patches, twice, would be below float16's least number."""
    torch.manual_seed(0)
    model = small.cam_model(
        "deit_small_patch16_224", 3, reduction=1.0, image_size=32, patch_size=8,
        backbone_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
    )  # fmt: skip
    attention = torch.softmax(6 * torch.randn(2, 2, 2, 64, 1600), -1)
    inputs = HeadInputs(
        class_logits=torch.zeros(2, 3),
        patch_map=3 * torch.randn(2, 16, 40, 40),
        features=torch.randn(2, 2, 2, 8),
        class_rows=attention[:, :, :, :3],
        column_means=attention.mean(3),
    )
    with torch.no_grad():
        exact = model.outputs(inputs).fine_logits
        with autocast("fp16", torch.device("cpu")):
            rounded = model.outputs(inputs).fine_logits
    assert rounded.dtype == torch.float32
    assert ((rounded - exact) / exact).abs().max() < 2e-3
