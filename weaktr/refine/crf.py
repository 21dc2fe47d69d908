"""The CRF that a recipe asks for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from weaktr.ops.dense_crf.presets import PRESETS, DenseCRF

FIELDS = tuple(field.name for field in fields(DenseCRF))


def choose_crf(setting: str | dict[str, Any] | None) -> DenseCRF | None:
    """A CRF from a recipe's value.

    Args:
        setting: a preset's name, the fields of `DenseCRF` with lists for tuples, or None / "none"
            for no CRF. ``[3, 3]`` and ``[[3, 5], 3]`` are one kernel; lists of kernels are for
            Python.

    Raises:
        ValueError: unknown preset or field, or a field's value of the wrong form.
    """
    if setting is None or setting == "none":
        return None
    if isinstance(setting, str):
        if setting not in PRESETS:
            raise ValueError(
                f"crf: expected one of {', '.join(sorted(PRESETS))}, none, or explicit settings; "
                f"got {setting!r}"
            )
        return DenseCRF.preset(setting)
    unknown = sorted(setting.keys() - set(FIELDS))
    if unknown:
        raise ValueError(f"crf: unknown key {unknown[0]!r}; known here: {', '.join(FIELDS)}")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in setting.items()
    }
    try:
        return DenseCRF(**given)
    except ValueError as error:
        raise ValueError(f"crf: {error}") from error
