"""The commands ``weaktr`` and ``weaktr-train``.

Exit codes: 0 all done; 1 something was left out, or failed for a reason outside the input (a full
disk, a file that may not be read); 2 wrong input, nothing was done; 130 interrupted, 143 stopped by
SIGTERM, and 128 and its number for any other signal.

A command is a module with `HELP`, `add_arguments` and `run`. It imports torch inside its functions,
so that ``--help`` is fast. For a mistake in the input, a command prints one line that says what to
do instead of a traceback (``--debug`` shows that).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Protocol

from rich.text import Text

from weaktr import __version__
from weaktr.cli import (
    data,
    env,
    eval,
    export,
    export_masks,
    import_checkpoint,
    index,
    init,
    label,
    predict,
    report,
    show,
    train,
)
from weaktr.cli.common import FAILED, INTERRUPTED, WRONG_INPUT, add_debug
from weaktr.cli.memory import keep_freed_memory
from weaktr.cli.threads import let_threads_sleep
from weaktr.files import ADVICE, FULL, WRONG_PATHS
from weaktr.messages import printable
from weaktr.progress import console, log, set_up_logging
from weaktr.stopping import Stopped, ended_by_signals

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "WRONG_INPUT",
    "main",
    "program",
    "train_main",
    "train_program",
]


class Command(Protocol):
    """What the module of a command contains."""

    HELP: str  #: of ``--help``; its first line also stands in the list of commands

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare the command's arguments."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Run the command and return the exit code."""
        ...


COMMANDS: dict[str, Command] = {
    "init": init,
    "train": train,
    "label": label,
    "predict": predict,
    "eval": eval,
    "import": import_checkpoint,
    "export": export,
    "export-masks": export_masks,
    "index": index,
    "data": data,
    "env": env,
    "show": show,
    "report": report,
}


EXIT_CODES = "exit codes: 0 done, 1 in part or failed, 2 wrong input, 130 interrupted, 143 SIGTERM"


class Parser(argparse.ArgumentParser):
    """A parser whose messages keep control characters of the arguments from the terminal."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message), file)


def program() -> NoReturn:
    """The program ``weaktr``."""
    sys.excepthook = _print_traceback
    let_threads_sleep()
    _leave(main())


def train_program() -> NoReturn:
    """The program ``weaktr-train``."""
    sys.excepthook = _print_traceback
    let_threads_sleep()
    _leave(train_main())


def _print_traceback(
    kind: type[BaseException], error: BaseException, origin: TracebackType | None
) -> None:
    """Print a traceback as Python does, without the control characters of names in it."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, origin))))


def _leave(code: int) -> NoReturn:
    """End the process; after a signal without waiting for compiled code that is still at work."""
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """``weaktr COMMAND ...``; returns the exit code."""
    parser = Parser(
        "weaktr",
        description="Weakly-supervised semantic segmentation with plain vision transformers.",
        epilog=EXIT_CODES,
    )
    _add_version(parser)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.HELP.strip().splitlines()[0],
            description=command.HELP,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        add_debug(subparser)
    arguments = parser.parse_args(argv)
    return _run(COMMANDS[arguments.command].run, arguments)


def train_main(argv: Sequence[str] | None = None) -> int:
    """``weaktr-train RECIPE ...``; returns the exit code."""
    parser = Parser(
        "weaktr-train",
        description=train.HELP,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_version(parser)
    train.add_arguments(parser)
    add_debug(parser)
    return _run(train.run, parser.parse_args(argv))


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"weaktr {__version__}")


def _run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; an error in its input becomes one line and an exit code."""
    set_up_logging(logging.DEBUG if arguments.debug else logging.INFO)
    keep_freed_memory()
    try:
        with ended_by_signals():
            return command(arguments)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        log.warning("%s", stopped)
        return stopped.code
    except Exception as error:
        code = None if arguments.debug else _exit_code(error)
        if code is None:
            raise
        text = str(error) or f"{type(error).__name__}: --debug shows where"
        if isinstance(error, OSError) and error.errno in FULL and ADVICE[error.errno] not in text:
            text = f"{text}; {ADVICE[error.errno]}"
        if type(error) is RuntimeError:  # torch's; of a loading process it begins with a traceback
            text = text.strip().splitlines()[-1]
        console.print(Text(text, style="bold red"))
        return code


def _exit_code(error: BaseException) -> int | None:
    """The exit code where the message of an error is all that the user needs, else None."""
    from weaktr.data.problems import DataError

    if isinstance(error, (ValueError, *WRONG_PATHS)):
        return FAILED if isinstance(error, DataError) and error.is_outside else WRONG_INPUT
    if isinstance(error, (OSError, MemoryError, RecursionError)):
        return FAILED  # a full disk, a file that may not be written, too much for this machine
    if not isinstance(error, RuntimeError):
        return None
    from weaktr.inference.pipeline import PipelineError
    from weaktr.models.memory import is_out_of_memory
    from weaktr.ops.registry import BackendUnavailable
    from weaktr.processes import ProcessLost

    if isinstance(error, PipelineError) and error.__cause__ is not None:
        return FAILED if isinstance(error.__cause__, OSError) else _exit_code(error.__cause__)
    if is_out_of_memory(error) or isinstance(error, ProcessLost):
        return FAILED
    return WRONG_INPUT if isinstance(error, BackendUnavailable) else None
