"""Attention in one place: SDPA, packed images, xformers (a stand-in), what is said without it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.models import small
from tests.models.test_families import CAM, TINY
from tests.tolerances import assert_close, assert_golden
from weaktr.models.checkpoints import save
from weaktr.ops import registry as backends
from weaktr.ops.attention import OP, chosen_attention, packing_of, softmax_attention
from weaktr.ops.registry import OPS, Backend, BackendUnavailable

NAME = "weaktr.ops.attention.xformers"
LENGTHS = (5, 5, 3, 9, 9, 9, 1)
PACKING = packing_of(LENGTHS, torch.device("cpu"))


def literally(q, k, v, lengths):
    """Each image's output and log-sum-exp, one after another."""
    outs, sums = [], []
    for a, b, c in zip(*(x.split(list(lengths), 2) for x in (q, k, v)), strict=True):
        logits = a @ b.transpose(2, 3) * a.shape[-1] ** -0.5
        outs.append(logits.softmax(-1) @ c)
        sums.append(logits.logsumexp(-1))
    return torch.cat(outs, 2), torch.cat(sums, 2)


def tensors(tokens, batch=1):
    return torch.randn(3, batch, 2, tokens, 8)


@pytest.fixture
def xformers(monkeypatch):
    """A stand-in for the package, on any device; notes how it is called."""
    calls = []

    def memory_efficient_attention(q, k, v, attn_bias=None, p=0.0):
        calls.append((tuple(q.shape), attn_bias, p))
        lengths = [q.shape[1]] if attn_bias is None else attn_bias.lengths
        return literally(*(x.transpose(1, 2) for x in (q, k, v)), lengths)[0].transpose(1, 2)

    mask = SimpleNamespace(from_seqlens=lambda lengths: SimpleNamespace(lengths=lengths))
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = {name: ModuleType(name) for name in names}
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalMask = mask
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    backends._missing.cache_clear()
    others = [backend for backend in OP.backends if backend.name != "xformers"]
    anywhere = replace(OP, backends=(*others, Backend("xformers", NAME, auto=False)))
    monkeypatch.setitem(OPS, "attention", anywhere)
    yield calls
    backends._missing.cache_clear()
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_packed_images_attend_to_themselves_alone(attention):
    q, k, v = tensors(sum(LENGTHS))
    out, lse, _ = softmax_attention(q, k, v, packing=PACKING, with_lse=True, attention=attention)
    expected, expected_lse = literally(q, k, v, LENGTHS)
    assert_close(out, expected, "float32")
    assert_close(lse, expected_lse, "float32")
    assert softmax_attention(q, k, v, packing=PACKING, attention=attention).lse is None


def test_xformers_is_called_in_its_own_layout(xformers):
    q, k, v = tensors(7, batch=3)
    out, lse, _ = softmax_attention(q, k, v, dropout=0.25, with_lse=True, attention="xformers")
    assert_close(out, F.scaled_dot_product_attention(q, k, v), "float32")
    assert lse is None
    assert xformers == [((3, 7, 2, 8), None, 0.25)]


def test_xformers_takes_packed_images_at_once(xformers):
    q, k, v = tensors(sum(LENGTHS))
    out = softmax_attention(q, k, v, packing=PACKING, attention="xformers").out
    assert_close(out, literally(q, k, v, LENGTHS)[0], "float32")
    assert len(xformers) == 1 and xformers[0][1].lengths == list(LENGTHS)


@pytest.mark.parametrize("family", ["deit_small_patch16_224", "eva02_small_patch14_224"])
def test_both_models_use_it(family, xformers, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    cam = small.cam_model(family, 3, attention="xformers", **CAM).eval()
    output = cam(images)
    assert len(xformers) == TINY["depth"]
    segmenter = small.segmenter(
        family, 4, attention="xformers", image_size=64, backbone_args=TINY
    ).eval()
    logits = segmenter(images)
    assert len(xformers) == 2 * TINY["depth"]
    cam.vit.attention = segmenter.vit.attention = "sdpa"
    assert_golden(output.fine_logits, cam(images).fine_logits)
    assert_golden(logits, segmenter(images))
    for model in (cam, segmenter):  # of the run, not of the model
        description = json.loads(save(model, tmp_path / "x").with_suffix(".json").read_text())
        assert "attention" not in description["config"]


def test_environment_variable_is_heeded(monkeypatch):
    assert chosen_attention() == "auto"
    monkeypatch.setenv("WEAKTR_ATTENTION", "xformers")
    assert chosen_attention() == "xformers"
    assert chosen_attention("sdpa") == "sdpa"
    assert small.cam_model("deit_small_patch16_224", 3, **CAM).vit.attention == "xformers"


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"attention: expected one of auto, cpu, "):
        small.cam_model("deit_small_patch16_224", 3, attention="flash", **CAM)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is here")
def test_without_xformers_it_says_so():
    with pytest.raises(BackendUnavailable, match=r"'xformers' of attention cannot run: No module"):
        softmax_attention(*tensors(4), attention="xformers")
    rows = {row.backend: row for row in backends.report() if row.op == "attention"}
    assert "No module named 'xformers'" in rows["xformers"].reason
    assert any("cpu" in rows[name].picked for name in ("cpu", "torch"))


def test_tensors_elsewhere_are_refused(xformers, monkeypatch):
    monkeypatch.setitem(OPS, "attention", OP)
    assert OP.choice("cuda", "xformers", OP.usual)[0].name == "xformers"
    assert "xformers" not in OP.choice("cuda", "auto", OP.usual)[1]
    with pytest.raises(BackendUnavailable, match=r"it runs on CUDA tensors, got cpu; leave"):
        softmax_attention(*tensors(4), attention="xformers")
