"""Triton's interpreter, in half its time."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


def look_through_the_language_once() -> None:
    """Remember what the interpreter replaces in Triton's language.

    It looks through all of the language whenever a kernel calls a function, mostly to find that
    everything is replaced already.
    """
    from triton.runtime import interpreter

    is_builtin = interpreter.tl.core.is_builtin

    @cache
    def builtins(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch(package: Any, *rest: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch
