"""What the segmenter predicts before it has learnt anything."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.models.small import segmenter
from weaktr.training.optimizers import segmenter_optimizer


@pytest.mark.parametrize("decoder", ["linear", "mask_transformer", "multi_mask_transformer"])
def test_it_starts_with_how_frequent_labels_are(decoder):
    model = segmenter("vit_tiny_patch16_224", 3, decoder=decoder).eval()
    shares = torch.tensor([0.7, 0.2, 0.1])
    with torch.no_grad():
        weight = model.decoder.head if decoder == "linear" else model.decoder.mask_norm
        weight.weight.zero_()
        weight.bias.normal_()
        model.start_from(shares)
        likely = model.patch_logits(torch.randn(1, 3, 64, 64)).softmax(1)
    assert_close(likely, shares.view(1, 3, 1, 1).expand_as(likely))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_blocks_and_what_comes_before_them_do_not_learn(count):
    small = {"image_size": 16, "patch_size": 8, "decoder": "linear"}
    size = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    model = segmenter("vit_tiny_patch16_224", 3, backbone_args=size, **small)
    optimizer = segmenter_optimizer(model, 0.1, encoder_lr=1.0, frozen_blocks=count, kind="adamw")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    blocks = {
        name for name in before if name.startswith(("vit.blocks.0.", "vit.blocks.1.")[:count])
    }
    first = {"vit.cls_token", "vit.pos_embed", "vit.patch_embed.proj.weight"}
    assert kept == (blocks | first | {"vit.patch_embed.proj.bias"} if count else set())


def test_no_more_blocks_than_there_are():
    model = segmenter("vit_tiny_patch16_224", 3)
    with pytest.raises(ValueError, match="at most the 12 blocks of the backbone, got 13"):
        model.freeze_blocks(13)
