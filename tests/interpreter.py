"""Triton's interpreter, in a third of its time."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any


def quicken() -> None:
    """Spare the interpreter what finds nothing here.

    - It looks through all of Triton's language whenever a kernel calls a function, to replace what
      a launch has replaced already: now once a launch, and what there is to replace is remembered.
    - It adds integers a second time in 64 bits, for overflows: tensors of tests are far too small.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    is_builtin, look_through = interpreter.tl.core.is_builtin, interpreter._patch_lang
    done: set[tuple[Any, ...]] = set()

    @cache
    def builtins(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch(package: Any, *rest: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, *rest)

    class Launch(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            done.clear()

    @cache
    def seen_from(function: Any) -> tuple[Any, ...]:
        seen = list(map(id, function.__globals__.values()))
        return tuple(x for x in (interpreter.tl, interpreter.tl.core) if id(x) in seen)

    def once_a_launch(function: Any) -> Any:
        modules = seen_from(function)
        if modules in done:
            return Launch()
        done.add(modules)
        return look_through(function)

    interpreter._LangPatchScope = Launch
    interpreter._patch_builtin = patch
    interpreter._patch_lang = once_a_launch
