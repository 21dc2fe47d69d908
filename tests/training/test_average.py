"""The moving average of weights: torch's own, to the bit."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from weaktr.training.average import MovingAverage


class Counted(nn.Module):
    """Weights, a buffer of numbers, and one of counts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def test_it_is_torchs_own():
    torch.manual_seed(0)
    model = Counted()
    own = MovingAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(4):
        with torch.no_grad():
            for value in (*model.parameters(), model.mean):
                value.add_(torch.randn_like(value))
            model.count.fill_(10 * step)
        own.update_parameters(model)
        theirs.update_parameters(model)
        expected = theirs.state_dict()
        assert own.state_dict().keys() == expected.keys()
        for name, value in own.state_dict().items():
            if name != "module.count":
                assert torch.equal(value, expected[name])
    assert not torch.equal(own.module.layer.weight, model.layer.weight)
    assert own.module.count == 30  # counts are not averaged
