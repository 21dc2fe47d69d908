"""`clipped_cross_entropy`, forward and backward, beside the eager published way."""

import published
import pytest
import torch

from weaktr.backends import REGISTRY, report
from weaktr.ops import clipped_cross_entropy

#: batch, labels, side of the logits, side of the labels
WORK = [(4, 21, 30, 480), (1, 91, 30, 480)]


@pytest.mark.parametrize(("batch", "num_labels", "low", "high"), WORK)
@pytest.mark.parametrize("row", [*REGISTRY["clipped_cross_entropy"], "published"])
def bench_clipped_cross_entropy(measure, device, row, batch, num_labels, low, high):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, num_labels, low, low, generator=generator).to(device)
    labels = torch.randint(num_labels, (batch, high, high), generator=generator).to(device)
    logits.requires_grad_()

    def step(loss):
        (gradient,) = torch.autograd.grad(loss, logits)
        return [loss, gradient]

    def ours(backend):
        loss = clipped_cross_entropy(logits, labels, start_value=9.0, backend=backend).loss
        return step(loss)

    if row == "published":

        def call():
            return step(published.clipped_loss(logits, labels, 120, 9.0))
    else:
        (status,) = (s for s in report() if (s.op, s.backend) == ("clipped_cross_entropy", row))
        if not status.available:
            pytest.skip(status.reason)

        def call():
            return ours(row)

    measure(
        call,
        group=f"clipped_cross_entropy B{batch} L{num_labels} {low}->{high}, forward + backward",
        row=row,
        baseline=row == "published",
        expected=ours("torch"),
        within=1e-5,
        items=batch,
        dtype="float32",
    )
