"""What the segmenter predicts before it has learnt anything."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.models.small import segmenter


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


@pytest.mark.parametrize("count", [1, 256])
def test_labels_that_are_too_few_or_too_many_for_masks(count):
    with pytest.raises(ValueError, match=f"num_labels: expected 2 to 255, got {count}"):
        segmenter("vit_tiny_patch16_224", count)
