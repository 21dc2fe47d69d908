"""The processes that do one run together, one a GPU, started by torchrun on one or more machines.

Each takes its part of every batch, and of every folder of photographs. The first decides what is
done next, and writes what belongs to the run as a whole. Where nothing started several, there is
one process, and every function here returns at once.

The gradients go through torch's default group. What the processes tell each other beside them goes
through a second group, on the CPU, in which one may wait for another as long as it takes.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from weaktr.progress import console
from weaktr.stopping import Stopped, ended_by_the_system

log = logging.getLogger("weaktr")
T = TypeVar("T")

#: What torchrun tells a process: its number, how many there are, and where they meet.
LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How long a process may be late for an exchange of gradients, and for anything else.
GRADIENTS, ANYTHING = timedelta(minutes=30), timedelta(days=7)
#: The key under which processes that end early count who is to say why.
WORD = "weaktr/word"
#: Seconds after which a process says that it waits for the others at the start.
LATE = 15.0
#: Seconds for which others that end find the store of a process that has ended.
LINGERS = 1.0
#: What the message of an error of torch has where the cause is another process.
SIGNS_OF_LOSS = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")


class ProcessLost(RuntimeError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class _Group:
    """The processes of this run.

    Args:
        index: of this one.
        count: of all.
        control: torch's group for everything but gradients.
        store: that all processes read and write.
    """

    index: int
    count: int
    control: dist.ProcessGroup
    store: dist.Store


@dataclass
class _State:
    """The processes that this one has met, those with which it works now, and who adds up."""

    met: _Group | None = None
    has_failed: bool = False  #: others may wait for ever in what this process has left
    now: _Group | None = None
    totals: Callable[[Tensor], Tensor] | None = None


_state = _State()


def count() -> int:
    """How many processes do the run."""
    return 1 if _state.now is None else _state.now.count


def index() -> int:
    """The number of this process, from 0."""
    return 0 if _state.now is None else _state.now.index


def is_first() -> bool:
    """Whether this process writes the files of the run."""
    return _state.now is None or _state.now.index == 0


def speaks() -> bool:
    """Whether this process says and writes what comes after a run that processes did together."""
    return _state.met is None or _state.met.index == 0


# ---- parts


def part(items: Sequence[T]) -> Sequence[T]:
    """Of many items those that this process works on: every `count`-th."""
    return items if (group := _state.now) is None else items[group.index :: group.count]


def rows_of_all(own: np.ndarray, number: int) -> np.ndarray:
    """What every process found of its `part` of `number` items, in the order of the items.

    Args:
        own: [items of this process, ...].
        number: items of all.
    """
    if _state.now is None:
        return own
    every = np.zeros((number, *own.shape[1:]), own.dtype)
    every[index() :: count()] = own
    return total(torch.from_numpy(every)).numpy()


def rows(batch_size: int) -> slice:
    """Which items of every batch are those of this process: as even as can be.

    Raises:
        ValueError: there are fewer items than processes.
    """
    if (group := _state.now) is None:
        return slice(0, batch_size)
    if batch_size < group.count:
        raise ValueError(
            f"batch_size: expected at least {group.count}, one for each process, got {batch_size}"
        )
    first, last = (batch_size * (group.index + i) // group.count for i in (0, 1))
    return slice(first, last)


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all parts of a batch, on its device, without gradient.

    The parts are those of the processes, or smaller ones (`totals_by`). What is given may
    be overwritten. It must not depend on another total of the same batch.
    """
    if _state.totals is not None:
        return _state.totals(values)
    if _state.now is not None:
        dist.all_reduce(values)
    return values


@contextmanager
def totals_by(answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `answer` return every `total` that is asked for below."""
    before, _state.totals = _state.totals, answer
    try:
        yield
    finally:
        _state.totals = before


def share(own: Tensor) -> Tensor:
    """A count of this process by that of all, a scalar on its device; 0 where there are none."""
    every = total(own.clone())
    return own / every.clamp(min=1)


# ---- what the processes tell each other


def of_each(value: Any) -> list[Any]:
    """The plain values (as JSON has them) of all processes, the first one's first."""
    if (group := _state.now) is None:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.zeros(group.count, dtype=torch.int64)
    sizes[group.index] = len(own)
    dist.all_reduce(sizes, group=group.control)
    texts = torch.zeros(group.count, int(sizes.max()), dtype=torch.uint8)
    texts[group.index, : len(own)] = own
    dist.all_reduce(texts, group=group.control)
    every = zip(texts, sizes.tolist(), strict=True)
    return [json.loads(text[:size].numpy().tobytes()) for text, size in every]


def of_first(make: Callable[[], T]) -> T:
    """The plain value that the first process makes `alone`; the others wait for it."""
    own = None
    if is_first():
        with alone():
            own = make()
    value: T = of_each(own)[0]
    return value


@contextmanager
def alone() -> Iterator[None]:
    """Do what follows as if this were the only process, for which the others are not to wait."""
    now, _state.now = _state.now, None
    try:
        yield
    finally:
        _state.now = now


def wait_for_all() -> None:
    """Return once every process has come here."""
    of_each(None)


class Agreement:
    """Numbers on which all processes agree while they go on: the largest of any process.

    With several processes what one says counts a call later, for all of them alike, so that none
    waits for another in a step.
    """

    def __init__(self) -> None:
        self._work: dist.Work | None = None
        self._values = torch.zeros(0)

    def largest(self, own: Sequence[int]) -> list[int]:
        """What all agree on; every process calls this equally often, with as many numbers.

        Returns:
            Alone `own`; else the largest numbers of the call before, at first zeros.
        """
        if (group := _state.now) is None:
            return list(own)
        agreed = [0] * len(own)
        if self._work is not None:
            self._work.wait()
            agreed = self._values.tolist()
        self._values = torch.tensor(own, dtype=torch.int64)
        self._work = dist.all_reduce(
            self._values, dist.ReduceOp.MAX, group=group.control, async_op=True
        )
        return agreed

    def forget(self) -> None:
        """What was said in the last call is answered; every process calls this equally often."""
        if self._work is not None:
            self._work.wait()
            self._values.zero_()


# ---- beginning and end


@contextmanager
def together() -> Iterator[None]:
    """Do what follows with all processes that torchrun has started, where it has.

    Of an error, whose consequences reach them all, one process speaks; the others end silently, or,
    where the store to ask was in process 0 and has ended with it, say that it has ended.

    Raises:
        ProcessLost: another process has ended.
        RuntimeError: an earlier run of this process with others ended in an error.
        SystemExit: another process has said why the run ends.
        ValueError: the launcher's variables do not fit each other.
    """
    if _state.now is not None or not _is_launched():
        yield
        return
    if _state.has_failed:
        raise RuntimeError(
            "an earlier run of these processes ended in an error, in which the others may still "
            "wait: start the processes anew for another run"
        )
    group = _state.now = _state.met = _state.met or _joined()
    quiet, level = console.quiet, log.level
    if not is_first():
        console.quiet = True
        log.setLevel(logging.ERROR)
    try:
        yield
        wait_for_all()
    except BaseException as error:
        _state.has_failed = True
        console.quiet = quiet
        turn = _turn_to_speak(group)
        if not isinstance(error, Stopped):
            atexit.unregister(dist.destroy_process_group)
            atexit.register(_break_off)
        if turn is not None and turn > 1:
            code = error.code if isinstance(error, Stopped) else 1
            raise SystemExit(code) from error
        if isinstance(error, RuntimeError) and is_loss(error):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            lost = "another process of the run has ended without a word (killed,"
            if turn is None:
                lost = "process 0 of the run has ended (it has said why, or was killed,"
            raise ProcessLost(
                f"process {group.index} of 0..{group.count - 1}: {lost} or its machine is gone), "
                "or cannot be reached; start the same command again, with as many processes as you "
                f"like: it goes on from the last checkpoint ({reason:.300})"
            ) from error
        raise
    finally:
        _state.now = None
        console.quiet = quiet
        log.setLevel(level)


def is_loss(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in SIGNS_OF_LOSS)


def _is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    given = {name: os.environ[name] for name in LAUNCHER if name in os.environ}
    if given.get("WORLD_SIZE", "1") == "1":
        return False
    told = ", ".join(f"{name}={value!r:.60}" for name, value in given.items())
    numbers = [given.get(name, "") for name in LAUNCHER if name != "MASTER_ADDR"]
    if len(given) < len(LAUNCHER) or not all(number.isdecimal() for number in numbers):
        raise ValueError(
            f"expected {', '.join(LAUNCHER)} as torchrun sets them, got {told}; unset WORLD_SIZE "
            "to train in one process"
        )
    if int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise ValueError(f"expected RANK from 0 to WORLD_SIZE - 1, got {told}")
    return True


def _joined() -> _Group:
    """Meet the other processes: wait until all have come, and say so where that takes long."""
    index, number = (int(os.environ[name]) for name in LAUNCHER[:2])
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    late = threading.Timer(
        LATE, log.warning,
        ("process %d of 0..%d waits for the others at %s", index, number - 1, place),
    )  # fmt: skip
    late.daemon = True
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one for each machine
        late.start()
    try:
        with ended_by_the_system():
            return _met(index, number)
    finally:
        late.cancel()


def _met(index: int, number: int) -> _Group:
    """Of `number` processes the one with this index, once all have come."""
    store, _, _ = next(iter(dist.rendezvous("env://", index, number, timeout=GRADIENTS)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"{attempt}/{number}", store)  # which outlives those that have died
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        store=store, rank=index, world_size=number, timeout=GRADIENTS,
    )  # fmt: skip
    atexit.register(dist.destroy_process_group)
    control = dist.new_group(backend="gloo", timeout=ANYTHING)
    assert isinstance(control, dist.ProcessGroup)
    return _Group(index, number, control, store)


def require_own_gpus(device: torch.device) -> None:
    """Raise `ValueError` where two processes would compute on one GPU.

    A GPU is told by its serial number: each process may see one alone, which has the same name.
    """
    own = ""
    if device.type == "cuda":
        own = f"{socket.gethostname()} {device} {torch.cuda.get_device_properties(device).uuid}"
    told = [one for one in of_each(own) if one]
    if len({one.rpartition(" ")[2] for one in told}) < len(told):
        raise ValueError(
            f"device: expected a GPU for each process, got {', '.join(told)}; start as many "
            "processes on a machine as it has GPUs, with --set device=auto"
        )


def _break_off() -> None:
    """Leave torch's groups without waiting for the others, when Python ends after an error.

    NCCL's orderly end waits for what is under way on the GPU, which may be an exchange with a
    process that is gone.
    """
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


def _turn_to_speak(group: _Group) -> int | None:
    """How many processes have ended early by now, this one included; None = it cannot be known,
    because the first process, which had the store, is gone."""
    try:
        turn = group.store.add(WORD, 1)
    except RuntimeError:
        return None
    if group.index == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        ends = time.monotonic() + LINGERS  # the store is in this process
        while group.store.add(WORD, 0) < group.count and time.monotonic() < ends:
            time.sleep(0.02)
    return int(turn)
