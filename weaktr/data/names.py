"""Lists of sample names, such as VOC's ``ImageSets/Segmentation/val.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weaktr.data.layout import read_lines
from weaktr.data.manifest import Sample, is_inside
from weaktr.data.problems import DataError, Problem


def read_names(path: Path) -> list[str]:
    """The first word of each line.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: no line, a name twice, or one that leads out of a folder.
    """
    line_of: dict[str, int] = {}
    for number, line in read_lines(path):
        name = line.split()[0]
        source = f"{path}:{number}"
        if not is_inside(name):
            message = f"expected a name without suffix and '..', got {name!r}"
            raise DataError(Problem(str(path), source, message))
        if name in line_of:
            raise DataError(
                Problem(str(path), source, f"{name!r} stands in line {line_of[name]} too")
            )
        line_of[name] = number
    if not line_of:
        raise DataError(Problem(str(path), "", "expected a name a line, found none"))
    return list(line_of)


def only(samples: Sequence[Sample], names: Sequence[str]) -> tuple[Sample, ...]:
    """The samples of these names, in the order of `names`.

    Raises:
        ValueError: names that no sample has.
    """
    known = {sample.name: sample for sample in samples}
    if missing := [name for name in names if name not in known]:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"names: {len(missing)} of {len(names)} have no image: {few}")
    return tuple(known[name] for name in names)
