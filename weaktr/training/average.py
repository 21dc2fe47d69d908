"""The moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """An exponential moving average of weights and buffers, for which nobody waits.

    torch's own copies the number of its updates to the device in each of them, and the host waits
    until all that the device was given before is done.

    Args:
        model: on its device; the average starts from its weights after the first update.
        decay: share of the average that an update leaves, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._approach = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of the same model, after a step, into the average."""
        pairs = [
            *zip(self.module.parameters(), model.parameters(), strict=True),
            *zip(self.module.buffers(), model.buffers(), strict=True),
        ]
        is_first = bool(self.n_averaged == 0)  # a number of the host's
        moving = [pair for pair in pairs if pair[0].is_floating_point() and not is_first]
        if moving:
            own, new = ([*part] for part in zip(*moving, strict=True))
            self._approach(own, new, 0)
        for average, value in pairs:
            if is_first or not average.is_floating_point():
                average.copy_(value)
        self.n_averaged += 1
