"""`clipped_cross_entropy`, forward and backward, beside the published way and eager PyTorch."""

import shutil

import published
import pytest
import torch
from floor import floor_seconds, loss_work

from weaktr.ops import clipped_cross_entropy
from weaktr.ops.clipped_cross_entropy.definition import clip_losses, pixel_losses
from weaktr.ops.registry import OPS, report

#: batch, labels, side of the logits, side of the labels
WORK = [(4, 21, 30, 480), (1, 91, 30, 480)]
WORK += [(16, 21, 30, 480), (16, 91, 30, 480)] * torch.cuda.is_available()
#: `eager` is the definition in PyTorch's own operators, `compiled` the same through torch.compile.
BACKENDS = [backend.name for backend in OPS["clipped_cross_entropy"].backends]
ROWS = [*BACKENDS, "eager", "compiled", "published"]
PATCH, START = 120, 9.0


def eager(logits, labels):
    return clip_losses(pixel_losses(logits, labels, 255), PATCH, START).loss


def loss_function(row, device):
    """(logits, labels) -> loss, the way of a row; skips the test where it cannot run."""
    if row == "published":
        return lambda logits, labels: published.clipped_loss(logits, labels, PATCH, START)
    if row == "eager":
        return eager
    if row == "compiled":
        if device == "cpu" and not shutil.which("c++"):
            pytest.skip("torch.compile needs a C++ compiler")
        return torch.compile(eager, fullgraph=True)
    (status,) = (s for s in report() if (s.op, s.backend) == ("clipped_cross_entropy", row))
    if not status.available:
        pytest.skip(status.reason)
    settings = {"patch_size": PATCH, "start_value": START, "backend": row}
    return lambda logits, labels: clipped_cross_entropy(logits, labels, **settings).loss


@pytest.mark.parametrize(("batch", "num_labels", "low", "high"), WORK)
@pytest.mark.parametrize("row", ROWS)
def bench_clipped_cross_entropy(measure, device, row, batch, num_labels, low, high):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, num_labels, low, low, generator=generator).to(device)
    labels = torch.randint(num_labels, (batch, high, high), generator=generator).to(device)
    logits.requires_grad_()

    def step(loss_of):
        loss = loss_of(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        return [loss.detach(), gradient]

    loss_of = loss_function(row, device)
    step(loss_of)  # compiles, and finds the fastest configuration, before memory is measured
    measure(
        lambda: step(loss_of),
        group=f"clipped_cross_entropy B{batch} L{num_labels} {low}->{high}, forward + backward",
        row=row,
        baseline=row == "published",
        expected=step(eager),
        within=2e-4 if row == "compiled" else 1e-5,  # its sums are less exact
        floor=floor_seconds(loss_work(logits, labels), logits.dtype),
        items=batch,
        dtype="float32",
    )
