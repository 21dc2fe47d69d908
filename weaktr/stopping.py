"""Signals that ask a program to end: of a user, of Slurm, of a machine that is taken away.

They end it as Ctrl-C does, so that what is at work can clean up after itself. A training holds them
back until its step is finished and saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Asked for by a user, an operating system or a cluster, a terminal that is closed, and by Slurm's
#: ``--signal=USR1@60``. Not all systems have all.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)  # fmt: skip


class Stopped(KeyboardInterrupt):
    """A signal has ended the program.

    Args:
        number: of the signal.
        reached: what is saved, in words; "" = nothing is said of it.
    """

    def __init__(self, number: int, reached: str = "") -> None:
        super().__init__(number, reached)
        self.number, self.reached = number, reached

    @property
    def code(self) -> int:
        """The exit code, as shells have it."""
        return 128 + self.number

    def __str__(self) -> str:
        where = f"{self.reached}: " if self.reached else ""
        is_key = self.number == signal.SIGINT
        how = "interrupted" if is_key else f"stopped by {signal.Signals(self.number).name}"
        return f"{where}{how}; start the same command again to go on"


class Held:
    """Signals that wait for the end of a step.

    Attributes:
        number: of the signal that came; 0 = none did.
    """

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have `SIGNALS` raise `Stopped`; those that somebody has set to be ignored stay so.

    Only the main thread can do this; in another nothing changes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled_by(stop):
        yield


@contextmanager
def held_signals() -> Iterator[Held]:
    """Note a signal instead of ending at once; a second Ctrl-C ends at once all the same.

    A signal that came and was not answered with `Stopped` is sent again at the end.
    """
    held = Held()

    def note(number: int, frame: FrameType | None) -> None:
        if held.number and number == signal.SIGINT:
            raise Stopped(number)
        held.number = held.number or number

    with _handled_by(note):
        yield held
    if held.number:
        signal.raise_signal(held.number)


@contextmanager
def ended_by_the_system() -> Iterator[None]:
    """Have `SIGNALS` end the process at once, for waits in compiled code, which hear of nothing.

    Nothing can be cleaned up.
    """
    with _handled_by(signal.SIG_DFL):
        yield


def ignore_signals() -> None:
    """Leave the end of this process to the one that started it (for processes that load images)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled_by(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [n for n, former in before.items() if former not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
