"""Which part of all shards a process works on, of processes that do not know of each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

#: Where launchers say which of how many processes this is: variables of the number, of the count,
#: and of the first number. `torchrun` and MPI-like launchers, then Slurm's arrays and the tasks of
#: ``srun``: not SLURM_NTASKS, which a batch script has too, that runs once.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", None),
)


@dataclass(frozen=True)
class Rank:
    """Process number `index` of `count`; it works on every `count`-th shard."""

    index: int = 0
    count: int = 1
    origin: str = ""  #: what says so; "" = nothing does

    def part(self, shards: Sequence[T]) -> Sequence[T]:
        """The shards of this process."""
        return shards[self.index :: self.count]


def rank_of(option: str | None, environment: Mapping[str, str]) -> Rank:
    """Which process this is.

    Args:
        option: ``"3/64"``: number 3 of 0..63; None = as `environment` says, by the variables of
            torchrun, of a Slurm array or of srun; one process where there are none.
        environment: of the process.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    if option is not None:
        parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", option)
        if parts is None:
            raise ValueError(f"--shard: expected I/N such as 0/4, got {option!r:.40}")
        return _checked(Rank(int(parts[1]), int(parts[2]), "--shard"))
    for index, count, first in _LAUNCHERS:
        if index in environment and count in environment:
            names = [index, count, *([first] if first is not None and first in environment else [])]
            values = [environment[name] for name in names]
            if not all(re.fullmatch(r"\d{1,9}", value) for value in values):
                told = ", ".join(f"{name}={environment[name]!r:.40}" for name in names)
                raise ValueError(f"expected numbers, got {told}; --shard I/N overrides them")
            number, total, *start = map(int, values)
            if total > 1:
                step = _step(environment) if first is not None else 1
                own = (number - sum(start)) // step
                return _checked(Rank(own, total, f"{index} and {count}"))
    return Rank()


def _step(environment: Mapping[str, str]) -> int:
    """By which the numbers of a Slurm array ascend (``--array=0-30:10``)."""
    text = environment.get("SLURM_ARRAY_TASK_STEP", "1")
    return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else 1


def _checked(rank: Rank) -> Rank:
    if rank.count < 1 or not 0 <= rank.index < rank.count:
        last = max(rank.count - 1, 0)
        raise ValueError(
            f"{rank.origin}: expected a number from 0 to {last} of {rank.count} processes (counted "
            f"from 0), got {rank.index}"
        )
    return rank
