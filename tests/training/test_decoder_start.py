"""A linear decoder that starts as a discriminant, against one computed patch by patch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.training.test_patches import discriminant
from weaktr.config import TrainPatchesConfig
from weaktr.models.segmenter import LinearDecoder
from weaktr.training.decoder_start import CHOOSE_EVERY, TEMPERATURES, start_decoder

LABELS, WIDTH = 4, 12


def photographs(count=9, noise=1.0, apart=1.0, seed=0):
    """Features of patches around a mean for each label, far from 0 and of unequal scales.

    The further `apart` the means, the higher the temperature that suits.
    """
    generator = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(LABELS, WIDTH, generator=generator)
    scale = torch.logspace(-1, 2, WIDTH)
    for number in range(count):
        logits = 3 * torch.randn(200 + number, LABELS, generator=generator)
        shares = (logits - torch.tensor([0.0, 1, 2, 3])).softmax(1)
        x = shares @ means + noise * torch.randn(len(shares), WIDTH, generator=generator)
        yield (x + 5) * scale, shares


def started(patches):
    decoder = LinearDecoder(WIDTH, LABELS)
    start_decoder(decoder, patches)
    return decoder.head


@pytest.mark.parametrize(("apart", "expected"), [(1.0, 1.0), (3.0, 2.0)])
def test_it_is_the_discriminant_of_all_patches(apart, expected):
    head = started(photographs(apart=apart))
    rows = zip(*photographs(apart=apart), strict=True)
    x, shares = (torch.cat(parts).double() for parts in rows)
    deviation, center = torch.std_mean(x, 0, correction=0)
    weight, bias = discriminant((x - center) / deviation, shares, TrainPatchesConfig(temperature=1))
    z = ((x - center) / deviation) @ weight.double().T + bias.double()
    prior = shares.mean(0).log()
    logits = {t: z / t + prior for t in TEMPERATURES}
    ends = [0, *torch.tensor([200 + number for number in range(9)]).cumsum(0).tolist()]
    some = torch.cat([torch.arange(*pair)[::CHOOSE_EVERY] for pair in pairwise(ends)])
    best = min(TEMPERATURES, key=lambda t: F.cross_entropy(logits[t][some], shares[some]).item())
    assert best == expected
    assert_close(x.float() @ head.weight.T + head.bias, logits[best].float(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("noise", [0.1, 10.0])
def test_it_is_no_worse_than_knowing_nothing(noise):
    """Than the shares of the labels alone, whatever the features tell."""
    head = started(photographs(noise=noise))
    x, shares = (torch.cat(parts) for parts in zip(*photographs(noise=noise), strict=True))
    own = F.cross_entropy(x @ head.weight.T + head.bias, shares)
    assert own < F.cross_entropy(shares.mean(0).log().expand_as(shares), shares)


def test_a_feature_that_is_constant_and_a_label_without_a_patch():
    def patches():
        for x, shares in photographs():
            kept = shares[:, :3] / shares[:, :3].sum(1, keepdim=True)
            yield torch.cat([x[:, 1:], torch.full((len(x), 1), 7.0)], 1), F.pad(kept, (0, 1))

    head = started(patches())
    assert head.weight.isfinite().all() and head.bias.isfinite().all()
    x, _ = next(iter(patches()))
    likely = (x @ head.weight.T + head.bias).softmax(1)
    assert likely[:, 3].max() < 0.05


@pytest.mark.parametrize("patches", [[], [(torch.zeros(0, WIDTH), torch.zeros(0, LABELS))]])
def test_without_labels_it_stays_as_it_was(patches):
    torch.manual_seed(0)
    expected = LinearDecoder(WIDTH, LABELS).head
    torch.manual_seed(0)
    head = started(iter(patches))
    assert torch.equal(head.weight, expected.weight) and torch.equal(head.bias, expected.bias)
