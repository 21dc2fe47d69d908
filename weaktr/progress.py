"""Progress bars on a terminal, plain lines elsewhere; TensorBoard where it is installed.

Names of files may hold anything: control characters in them never reach the terminal.
"""

from __future__ import annotations

import html
import importlib.util
import io
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from weaktr.messages import duration, one_line, printable

T = TypeVar("T")
log = logging.getLogger("weaktr")


class PlainConsole(Console):
    """A console that prints names of files as `printable` has them.

    Nothing in a text is markup: ``[/x]`` and ``:smile:`` in a name stay what they are. Styles come
    by `rich.text.Text` and by the arguments of tables.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `Console`; texts only, not what the console itself tells the terminal."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


class PlainFormatter(logging.Formatter):
    """Lines for files and pipes, as `printable` has them."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return printable(super().format(record))


console = PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() else 150)

#: Columns of a terminal below which bars show less.
NARROW = 70
#: Seconds between two lines where there is no terminal.
LINE_SECONDS = 20.0
#: Seconds between two looks of a notebook's bar.
CELL_SECONDS = 0.5


def set_up_logging(level: int = logging.INFO) -> None:
    """Send weaktr's messages to the console (called by the commands, not by the library).

    Warnings of Python are among them, a line each, and those that other libraries log are printed
    as `printable` has them.
    """
    if not log.handlers:
        log.addHandler(_handler())
        log.propagate = False
    log.setLevel(level)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every letter
            stream.reconfigure(errors="backslashreplace")
    if isinstance(logging.lastResort, logging.Handler):
        logging.lastResort.setFormatter(PlainFormatter())
    warnings.showwarning = _log_warning
    for module in (r"PIL\.TiffImagePlugin", r"PIL\.Image", r"PIL\.PngImagePlugin"):
        warnings.filterwarnings("ignore", module=module)  # of odd files, amid a bar


@contextmanager
def shown_log() -> Iterator[None]:
    """Show weaktr's messages during a call from Python, unless logging is set up already."""
    if log.hasHandlers() or log.level != logging.NOTSET:
        yield
        return
    handler = _handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def _handler() -> logging.Handler:
    """Lines with the date and the time; in a notebook the time alone, on a terminal neither."""
    if console.is_terminal:
        return RichHandler(
            console=console, show_path=False, show_time=False, show_level=False, markup=False
        )
    handler = logging.StreamHandler(sys.stdout if console.is_jupyter else None)
    date = "%H:%M:%S" if console.is_jupyter else "%Y-%m-%d %H:%M:%S"
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", date))
    return handler


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning of Python on one line; where it comes from is for whoever looks closer."""
    log.warning("%s: %s", category.__name__, one_line(str(message)))
    log.debug("that warning comes from %s:%d", filename, lineno)


class Meter:
    """Progress of counted work: a bar with speed, ETA and a note, or a line every `LINE_SECONDS`.

    Work of nothing has no bar.

    In a notebook the bar is one line of HTML, which takes no widgets and stays when it is saved.

    Args:
        title: of the work.
        total: number of units.
        done: number of units that a resumed run starts with.
        unit: what is counted, for the speed.
        is_minor: work that is worth a line only if it takes long.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "images",
        is_minor: bool = False,
    ) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.is_minor = is_minor
        self._started, self._start_done = time.monotonic(), done
        self._last_line = self._started
        self._logged = done
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._cell: Any = None  #: a notebook's handle of what it displays

    def __enter__(self) -> Meter:
        if console.is_terminal and self.total:
            self._bar = Progress(*_columns(), console=console, transient=self.is_minor)
            self._bar.start()
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, speed="", note=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._cell is not None:
            self._draw("", is_over=True)
        elif self.done > self._logged and not self.is_minor:
            self._line("")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note`, such as the loss, stands beside the bar."""
        self.done += count
        if self._bar is not None and self._task is not None:
            speed = f"{self.speed():.1f} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, speed=speed)
            if note:
                self._bar.update(self._task, note=note)
        elif console.is_jupyter and time.monotonic() - self._last_line >= CELL_SECONDS:
            self._last_line = time.monotonic()
            self._draw(note)
        elif not console.is_jupyter and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._line(note)

    def expect(self, total: int, *, skipped: int = 0) -> None:
        """Take another number for the total; `skipped` units were done without work."""
        self.total = total
        self.done += skipped
        self._start_done += skipped
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total, completed=self.done)
        elif self._bar is None and console.is_terminal and total:
            self.__enter__()

    def speed(self) -> float:
        """Units a second since the start."""
        return (self.done - self._start_done) / max(time.monotonic() - self._started, 1e-9)

    def _line(self, note: str) -> None:
        """Log the progress as a line."""
        self._logged = self.done
        log.info("%s: %s", self.title, self._state(note))

    def _draw(self, note: str, *, is_over: bool = False) -> None:
        """Show the progress in a notebook's cell; what was minor and is over leaves nothing."""
        from IPython.display import HTML, display

        bar = f'<progress value="{self.done}" max="{self.total}"></progress>'
        line = html.escape(one_line(f"{self.title}: {self._state(note)}"))
        shown = HTML("" if is_over and self.is_minor else f"{bar} {line}")
        if self._cell is None:
            self._cell = display(shown, display_id=True)
        else:
            self._cell.update(shown)

    def _state(self, note: str) -> str:
        """How much is done, how fast, how long the rest will take, and `note`."""
        parts = [f"{self.done} of {self.total}", f"{self.speed():.1f} {self.unit}/s"]
        if self.done < self.total:
            left = (self.total - self.done) / max(self.speed(), 1e-9)
            parts.append(f"{duration(left)} left")
        return ", ".join([*parts, *([note] if note else [])])


def _columns() -> list[ProgressColumn]:
    """Of a bar; in a narrow terminal fewer, since each would be cut short."""
    title, count = TextColumn("{task.description}", markup=False), MofNCompleteColumn()
    if console.width < NARROW:
        return [title, count, TimeRemainingColumn()]
    return [
        title,
        BarColumn(),
        count,
        TextColumn("{task.fields[speed]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]


def track(
    items: Iterable[T], title: str, total: int, unit: str = "images", *, is_minor: bool = False
) -> Iterator[T]:
    """Yield `items` while counting them; arguments as in `Meter`."""
    with Meter(title, total, unit=unit, is_minor=is_minor) as meter:
        for item in items:
            yield item
            meter.advance()


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard:
    """Scalars for TensorBoard; does nothing where it is not installed, or not `is_written`."""

    def __init__(self, folder: Path, *, is_written: bool = True) -> None:
        self._writer: Any = None
        if is_written and has_tensorboard():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write each value under its name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long the body of a ``with`` statement took."""
    start = time.monotonic()
    yield
    log.info("%s took %s", what, duration(time.monotonic() - start))
