"""Runs of ``weaktr label`` that are killed at a chosen moment, each in a process of its own.

    python -m tests.shards.killed HOME MOMENT:OUT[:FORM] ...

The processes are forked from one that has loaded everything, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.shards import work
from weaktr.shards import output
from weaktr.shards.output import ShardWriter

#: Moments: name -> what is called then.
MOMENTS: dict[str, tuple[Any, str]] = {
    "add": (ShardWriter, "add"),
    "known": (ShardWriter, "_known"),
    "publish": (ShardWriter, "_publish"),
    "table": (output, "write_table"),
    "remove": (output, "remove_unfinished"),
}


def after(moment: str, act: Callable[[], None]) -> None:
    """Let something happen after the n-th call: ``add3``."""
    name = moment.rstrip("0123456789")
    left = int(moment[len(name) :])
    owner, attribute = MOMENTS[name]
    real = getattr(owner, attribute)

    def acting(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        value = real(*arguments, **options)
        left -= 1
        if left == 0:
            act()
        return value

    setattr(owner, attribute, acting)


def main(home: Path, runs: list[str]) -> None:
    """Run and kill each."""
    for run in runs:
        moment, out, form = run.split(":")
        child = os.fork()
        if child == 0:
            after(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
            work.label(home, "--shard-size", "5", *work.BESIDE, "--output", form, out=out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(run, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
