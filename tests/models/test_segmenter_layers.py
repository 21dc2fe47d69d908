"""Segmenters whose decoders get several blocks of the encoder."""

from __future__ import annotations

import pytest
import torch

from tests.models.small import segmenter
from tests.tolerances import assert_close
from weaktr.export.modules import ExportableSegmenter
from weaktr.models import checkpoints

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "backbone_args": {"embed_dim": 16, "depth": 3, "num_heads": 2},
    "drop_path": 0.0,
}


def small(**settings):
    torch.manual_seed(0)
    return segmenter("vit_tiny_patch16_224", 4, **SMALL | settings).eval()


@pytest.mark.parametrize("decoder", ["linear", "mask_transformer", "multi_mask_transformer"])
@pytest.mark.parametrize("layers", [(-1,), (0, -1), (-1, 0, 1)])
def test_the_decoder_gets_the_layers_that_were_asked_for(layers, decoder):
    model = small(layers=layers, decoder=decoder, image_head=True)
    images = torch.randn(2, 3, 32, 24)
    batch = model.vit.embed(images)
    tokens, kept = batch.tokens, []
    for index in range(3):
        tokens = model.vit.run_block(index, tokens, batch).tokens
        kept.append(model.vit.norm(tokens))
    expected = torch.cat([kept[index] for index in layers], 2)
    encoding = model.encode(images)
    assert torch.equal(encoding.patches, expected[:, 1:])
    head = model.image_head.head
    whole = torch.cat([expected[:, 1:].mean(1), expected[:, 0]], 1)
    assert_close(encoding.classes, whole @ head.weight.T + head.bias, "float32")
    assert model.decode(encoding).shape == (2, 4, 4, 3)


def test_a_linear_decoder_of_layers_side_by_side():
    model = small(layers=(0, -1), decoder="linear")
    images = torch.randn(1, 3, 32, 32)
    patches, (weight, bias) = model.encode(images).patches, model.decoder.head.parameters()
    assert weight.shape == (4, 32)
    expected = (patches @ weight.T + bias).transpose(1, 2).unflatten(2, (4, 4))
    assert_close(model.patch_logits(images), expected, "float32")


def test_saved_and_exported(tmp_path):
    model = small(layers=(0, -1), decoder="linear", image_head=True)
    images = torch.randn(1, 3, 30, 37)
    loaded, _ = checkpoints.load(checkpoints.save(model, tmp_path / "model"))
    assert loaded.config.layers == (0, -1)
    assert torch.equal(loaded(images), model(images))
    assert_close(ExportableSegmenter(model)(images)[0], model(images), "float32")


@pytest.mark.parametrize("layers", [(3,), (-4, 0), (0, -3)])
def test_blocks_that_are_not_there_or_twice(layers):
    with pytest.raises(ValueError, match=r"layers: expected blocks -3\.\.2, each once"):
        small(layers=layers)


@pytest.mark.parametrize("layers", [(-1,), (0,), (1, 0)])
def test_everything_that_counts_as_trained_gets_a_gradient(layers):
    """Several processes wait for all gradients; the blocks after the last layer have none."""
    model = small(layers=layers).train()
    model.loss(torch.randn(2, 3, 32, 32), torch.randint(4, (2, 32, 32))).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, p in model.named_parameters() if not p.requires_grad}
    after = range(max(model.layers) + 1, 3)
    assert {name.split(".")[2] for name in without} == set(map(str, after))


def test_blocks_after_the_last_layer_are_not_computed(monkeypatch):
    model, computed = small(layers=(1, 0)), []
    run_block = model.vit.run_block
    monkeypatch.setattr(
        model.vit,
        "run_block",
        lambda index, *rest: computed.append(index) or run_block(index, *rest),
    )
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4, 32, 32)
    assert computed == [0, 1]
