"""Losses as one compiled graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch._dynamo.exc import TorchDynamoException

log = logging.getLogger("weaktr")
P = ParamSpec("P")
R = TypeVar("R")


def compiled(losses: Callable[P, R], enabled: bool) -> Callable[P, R]:
    """`losses`, run as one compiled graph where `enabled`; the model in it keeps its names.

    Args:
        losses: computes the losses of a batch; all batches have one shape.
        enabled: `TrainCamConfig.compile` or `TrainSegConfig.compile`.

    Raises:
        ValueError: (what is returned) it cannot be compiled here.
    """
    if not enabled:
        return losses
    log.info("torch.compile: the first step takes long, then steps are faster")
    graph = torch.compile(losses, fullgraph=True, dynamic=False)

    @wraps(losses)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return cast(R, graph(*arguments, **options))
        except TorchDynamoException as error:
            log.debug("torch.compile", exc_info=True)
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"compile: torch.compile fails ({reason}); look after the compiler, delete torch's "
                "cache (TORCHINDUCTOR_CACHE_DIR), or set compile to false"
            ) from error

    return run
