"""The whole names of settings, ``train_cam.batch_size``, in messages that give the last part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from weaktr.config import Recipe

#: The setting with which a message begins: ``batch_size: ...``, ``patches.layers: ...``.
FIRST = re.compile(r"([a-z_0-9]+)(\.[a-z_0-9.]+)?[:=]")


def whole_key(message: str, groups: Sequence[str]) -> str:
    """A message with the whole name of the setting that it begins with.

    Args:
        message: ``batch_size: expected ...``; another one stays as it is.
        groups: fields of `Recipe` in which the setting is looked for, in this order.
    """
    found = FIRST.match(message)
    usual = Recipe()
    for group in groups if found and found[1] not in groups else ():
        if found and (key := _place(getattr(usual, group), found[1])) is not None:
            return f"{group}.{key}{message[found.end(1) :]}"
    return message


@contextmanager
def whole_keys(groups: Sequence[str]) -> Iterator[None]:
    """Errors of settings in the body of a ``with`` statement give their whole names.

    Raises:
        ValueError: in place of one that does not.
    """
    try:
        yield
    except ValueError as error:
        told = whole_key(str(error), groups)
        if type(error) is not ValueError or told == str(error):
            raise
        raise ValueError(told) from error


def _place(settings: Any, name: str) -> str | None:
    """Where a setting is in a group: its name, or that with groups inside before it."""
    inside = fields(settings) if is_dataclass(settings) else ()
    if name in (field.name for field in inside):
        return name
    for field in inside:
        if (place := _place(getattr(settings, field.name), name)) is not None:
            return f"{field.name}.{place}"
    return None
