"""Faults of a data set, and the error that reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: How many problems one error message lists; of the others it gives the number.
LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One fault of a data set.

    Args:
        file: the file at fault, as a path.
        where: where that file was declared, ``"list.txt:12"`` or ``'labels.json["a.jpg"]'``.
        message: what was expected and what is there.
        level: ``"error"`` breaks or falsifies a run; ``"warning"`` should be looked at.
        kind: what it is counted under where there are many; "" = `message` up to its first colon.
    """

    file: str
    where: str
    message: str
    level: Literal["error", "warning"] = "error"
    kind: str = ""

    def __str__(self) -> str:
        declared = f" ({self.where})" if self.where else ""
        return printable(f"{self.file}{declared}: {self.message}")


def printable(text: str) -> str:
    """Text in which everything that is not to be seen stands as an escape, such as ``\\n``.

    Names of files may hold line breaks, escape sequences of terminals, and bytes that are not
    UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def few(names: Sequence[object]) -> str:
    """The first five of some names, for a message: ``a, b, c, d, e and 7 more``."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return printable(", ".join(map(str, names[:5]))) + more


class DataError(ValueError):
    """A data set cannot be used as it is; names the file and where it was declared.

    Args:
        problems: all faults, at least one; or a finished message, which is how a data
            loader passes on a worker's error.
    """

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        lines = [str(problem) for problem in self.problems[:LISTED]]
        if len(self.problems) > LISTED:
            lines.append(f"... and {len(self.problems) - LISTED} more")
        count = f"{len(self.problems)} problems:\n" if len(self.problems) > 1 else ""
        super().__init__(count + "\n".join(lines))

    def __reduce__(self) -> tuple[type[DataError], tuple[tuple[Problem, ...] | str]]:
        return DataError, (self.problems or str(self),)
