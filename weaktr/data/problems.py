"""Faults of a data set, and the error that reports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from weaktr.messages import first_lines, one_line

#: How many problems one error message lists, and a table of each kind; of the others they give the
#: number.
LISTED = 20
#: How many kinds of problems are counted apart.
KINDS = 60


@dataclass(frozen=True)
class Problem:
    """One fault of a data set.

    Args:
        file: the file at fault, as a path.
        where: where that file was declared, ``"list.txt:12"`` or ``'labels.json["a.jpg"]'``.
        message: what was expected and what is there.
        level: ``"error"`` breaks or falsifies a run; ``"warning"`` should be looked at.
        kind: what it is counted under where there are many; "" = `message` up to its first colon.
        is_outside: the file may not be read: a fault of the system, not of the data set.
    """

    file: str
    where: str
    message: str
    level: Literal["error", "warning"] = "error"
    kind: str = ""
    is_outside: bool = False

    def __str__(self) -> str:
        declared = f" ({self.where})" if self.where else ""
        return one_line(f"{self.file}{declared}: {self.message}")


class Findings(list[Problem]):
    """A list that keeps the first `LISTED` problems of each kind, and counts all.

    Of more than `KINDS` kinds the later ones are counted together.

    Attributes:
        counts: (level, kind) -> how many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def append(self, problem: Problem) -> None:
        """Count a problem, and keep it where it is one of the first of its kind."""
        key = self.key(problem)
        self.counts[key] += 1
        if self.counts[key] <= LISTED:
            super().append(problem)

    def extend(self, problems: Iterable[Problem]) -> None:
        """Append several."""
        for problem in problems:
            self.append(problem)

    def __iadd__(self, problems: Iterable[Problem]) -> Self:  # type: ignore[override,misc]
        self.extend(problems)
        return self

    def key(self, problem: Problem) -> tuple[str, str]:
        """What a problem is counted under."""
        key = (problem.level, problem.kind or problem.message.partition(":")[0])
        if key in self.counts or len(self.counts) < KINDS:
            return key
        return (problem.level, "other")

    def count(self, level: object) -> int:
        """How many problems of a level there are."""
        return sum(count for (of, _), count in self.counts.items() if of == level)


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
        lines = first_lines(self.problems, LISTED)
        count = f"{len(self.problems)} problems:\n" if len(self.problems) > 1 else ""
        super().__init__(count + "\n".join(lines))

    @property
    def is_outside(self) -> bool:
        """Whether the files may be sound, but the system lets none of them be read."""
        return bool(self.problems) and all(problem.is_outside for problem in self.problems)

    def __reduce__(self) -> tuple[type[DataError], tuple[tuple[Problem, ...] | str]]:
        return DataError, (self.problems or str(self),)
