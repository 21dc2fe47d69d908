"""What a setting may be: its type and its range, checked whenever settings are made.

A settings class says so beside its default (`weaktr.config`)::

    @dataclass(frozen=True)
    class Blur(Settings):
        sigma: Annotated[float, Field(gt=0, le=100)] = 1.0

`Blur(sigma=-1)` is then a `SettingsError`, as is the same value in a recipe or in ``--set``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

#: Of images, steps, threads, ...: at least one, or none as well.
Count = Annotated[int, Field(ge=1, le=10_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=10_000_000)]
Pixels = Annotated[int, Field(ge=1, le=65_536)]
#: A share, a probability, a score.
Share = Annotated[float, Field(ge=0, le=1)]
#: Without 0, without 1, without both.
ShareAbove0 = Annotated[float, Field(gt=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
ShareBetween = Annotated[float, Field(gt=0, lt=1)]
AtLeast0 = Annotated[float, Field(ge=0, le=1e9)]
Above0 = Annotated[float, Field(gt=0, le=1e9)]
#: Learning rates, weight decays and exponents, far more than any training takes.
Rate = Annotated[float, Field(ge=0, le=100)]
RateAbove0 = Annotated[float, Field(gt=0, le=100)]
#: Factors on the size of an image.
Scales = Annotated[tuple[Annotated[float, Field(ge=0.01, le=64)], ...], Field(min_length=1)]
#: Text with something in it.
Text = Annotated[str, Field(min_length=1)]

#: A type of a setting -> what a message calls its values.
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}
#: Faults of a value of the right type, as pydantic calls them.
OUTSIDE = {
    "greater_than", "greater_than_equal", "less_than", "less_than_equal",
    "too_short", "string_too_short", "value_error",
}  # fmt: skip
#: A longer value is cut in messages.
SHOWN = 500


def ascending(pair: tuple[float, float]) -> tuple[float, float]:
    """`pair`, which must be two numbers from 0.01 to 100, the second not below the first."""
    if not 0.01 <= pair[0] <= pair[1] <= 100:
        raise ValueError("expected two numbers from 0.01 to 100, the larger one last")
    return pair


#: From, to: of factors and proportions that are drawn at random.
Between = Annotated[tuple[float, float], AfterValidator(ascending)]


class SettingsError(ValueError):
    """Settings that cannot be; the message has a line for each.

    Args:
        faults: name of a setting -> what was expected and what came.
    """

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        super().__init__("\n".join(f"{name}: {text}" for name, text in faults.items()))

    def __reduce__(self) -> tuple[type[SettingsError], tuple[dict[str, str]]]:
        return SettingsError, (self.faults,)


class Settings:
    """Base of the settings, which are frozen dataclasses: their values are checked and made plain.

    Types are taken strictly: a list becomes a tuple and a whole number will do for a float, but
    ``"5"`` and ``True`` are no numbers, and no number is NaN or infinite. numpy's numbers and
    paths become plain numbers and text.

    Raises:
        SettingsError: names every setting that is of the wrong type or outside its range.
    """

    def __post_init__(self) -> None:
        faults: dict[str, str] = {}
        for name, rule in _rules(type(self)).items():  # type: ignore[arg-type] # a class is hashable
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, rule.checked(value))
            except SettingsError as error:
                faults |= {f"{name}{place}": text for place, text in error.faults.items()}
        faults = faults or self.conflicts()
        if faults:
            raise SettingsError(faults)

    def conflicts(self) -> dict[str, str]:
        """Settings that do not go together, each possible alone: name -> fault."""
        return {}


class _Rule(NamedTuple):
    """What one setting may be: its type with its range, and pydantic's validator of it."""

    hint: Any
    validator: TypeAdapter[Any] | None  #: None: a group of settings

    def checked(self, value: Any) -> Any:
        """`value` in plain types.

        Raises:
            SettingsError: its names are places inside the value, "" for all of it.
        """
        if self.validator is None:
            if isinstance(value, self.hint):
                return value
            raise SettingsError({"": f"expected {self.hint.__name__}, got {shown(value)}"})
        try:
            text = json.dumps(value, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:  # no data, or endless
            message = f"expected {in_words(self.hint)}, got {shown(value)}"
            raise SettingsError({"": message}) from error
        _require_finite(json.loads(text))
        try:
            checked = self.validator.validate_json(text, strict=True)
        except ValidationError as error:
            raise SettingsError({"": self._fault(error, value)}) from error
        _require_finite(checked)  # a whole number of 400 digits is none of float's
        return checked

    def _fault(self, error: ValidationError, value: Any) -> str:
        """What was expected and what came: the type, or where that is right, the range."""
        details = error.errors(include_url=False)
        of_ours = [str(d["ctx"]["error"]) for d in details if d["type"] == "value_error"]
        if of_ours:
            return f"{of_ours[0]}, got {shown(value)}"
        outside = any(detail["type"] in OUTSIDE for detail in details)
        return f"expected {in_words(self.hint, ranges=outside)}, got {shown(value)}"


def in_words(hint: Any, *, ranges: bool = False) -> str:
    """A setting's type in words, with the ranges of its numbers if wanted."""
    parts = get_args(hint)
    origin = get_origin(hint)
    if origin is Annotated:
        words = in_words(parts[0], ranges=ranges)
        fields = [part for part in parts[1:] if isinstance(part, FieldInfo)]
        return _within(words, [limit for f in fields for limit in f.metadata]) if ranges else words
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(in_words(part, ranges=ranges) for part in parts)
    if origin is tuple:
        if parts[-1] is ...:
            return f"a list, each item {in_words(parts[0], ranges=ranges)}"
        return f"a list of {len(parts)} ({', '.join(in_words(p, ranges=ranges) for p in parts)})"
    return WORDS.get(hint, "a mapping")


def _within(words: str, limits: Iterable[Any]) -> str:
    """`words` with pydantic's limits of a number or a length."""
    found = {
        kind: getattr(limit, kind)
        for limit in limits
        for kind in ("ge", "gt", "le", "lt", "min_length")
        if hasattr(limit, kind)
    }
    if "min_length" in found:
        return words.replace("a list", "a list of at least one", 1).replace("text", "some text", 1)
    if {"ge", "le"} <= found.keys():
        return f"{words} from {found['ge']} to {found['le']}"
    names = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    return f"{words} {' and '.join(f'{names[kind]} {limit}' for kind, limit in found.items())}"


def _require_finite(value: Any) -> None:
    """Raise `SettingsError` for numbers that are NaN or infinite, by their places in `value`."""
    if wrong := dict(_not_finite(value)):
        message = "expected a finite number, got {}"
        raise SettingsError({place: message.format(number) for place, number in wrong.items()})


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Places, such as ``.gaussian.0``, and values of the numbers that are NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    below: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        below = value.items()
    elif isinstance(value, list | tuple):
        below = enumerate(value)
    for key, part in below:
        yield from _not_finite(part, f"{place}.{key}")


@cache
def _rules(kind: type) -> dict[str, _Rule]:
    """The rules of a settings class, kept because building them takes long."""
    return {
        name: _Rule(hint, None if dataclasses.is_dataclass(hint) else TypeAdapter(hint))
        for name, hint in get_type_hints(kind, include_extras=True).items()
    }


def _plain(value: Any) -> Any:
    """What JSON has for numpy's numbers and arrays, and for paths.

    Raises:
        TypeError: nothing.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no data")


def shown(value: Any) -> str:
    """`value` in a message, on one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; a number of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
