"""A linear decoder that begins as a linear discriminant of its labels.

    z_c = (w_c · x + b_c) / τ + ln share_c

with `weaktr.training.discriminants` in the features x of the encoder as it is, and τ the one of
`TEMPERATURES` with the least cross-entropy. Training then changes an encoder whose decoder already
knows the labels, and not features to suit a decoder that knows nothing.

Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", arXiv 2202.10054 (first the head alone, then everything).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.models.segmenter import LinearDecoder
from weaktr.training.discriminants import Moments, discriminant

#: Of the covariance, as in `TrainPatchesConfig`.
SHRINKAGE = 0.1
#: What scores may be divided by; discriminants are too sure of themselves.
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Every so many patches of each photograph the temperature is chosen on one.
CHOOSE_EVERY = 32
#: A feature that varies less is as good as constant; labels that are rarer count as if not.
LEAST_SCALE, LEAST_SHARE = 1e-6, 1e-4


@torch.no_grad()
def start_decoder(decoder: LinearDecoder, patches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make a decoder the discriminant of patches; where there are none it stays as it is.

    Args:
        decoder: gets the weights.
        patches: of each photograph the features [P, W] that the decoder gets, and shares of labels
            [P, L] that sum to 1, both float32 on the decoder's device.
    """
    labels, width = decoder.head.weight.shape
    device = decoder.head.weight.device
    sums = [
        torch.zeros(shape, dtype=torch.float64, device=device)
        for shape in ((labels,), (labels, width), (width, width))
    ]
    some = []
    for x, shares in patches:
        some.append((x[::CHOOSE_EVERY].clone(), shares[::CHOOSE_EVERY].clone()))
        for total, own in zip(sums, (shares.sum(0), shares.T @ x, x.T @ x), strict=True):
            total.add_(own)
    if not sums[0].any():
        return  # nothing is labelled
    moments, center, scale = standardised(Moments(*sums))
    weight, bias = discriminant(moments, SHRINKAGE)
    weight = weight / scale
    bias = bias - weight @ center
    prior = (moments.mass / moments.mass.sum()).clamp_min(LEAST_SHARE).log()
    weight, bias, prior = weight.float(), bias.float(), prior.float()
    x, shares = (torch.cat(parts) for parts in zip(*some, strict=True))
    scores = x @ weight.T + bias
    losses = [F.cross_entropy(scores / temperature + prior, shares) for temperature in TEMPERATURES]
    temperature = TEMPERATURES[int(torch.stack(losses).argmin())]
    decoder.head.weight.copy_(weight / temperature)
    decoder.head.bias.copy_(bias / temperature + prior)


def standardised(moments: Moments) -> tuple[Moments, Tensor, Tensor]:
    """Moments of (x - center) / scale, whose mean is 0 and deviation 1, with center and scale [F].

    Features that are as good as constant keep their scale.
    """
    mass, sums, squares = moments
    count = mass.sum()
    center = sums.sum(0) / count
    deviation = (squares.diagonal() / count - center.square()).clamp_min(0).sqrt()
    scale = torch.where(deviation > LEAST_SCALE, deviation, 1.0)
    return (
        Moments(
            mass,
            (sums - torch.outer(mass, center)) / scale,
            (squares - count * torch.outer(center, center)) / torch.outer(scale, scale),
        ),
        center,
        scale,
    )
