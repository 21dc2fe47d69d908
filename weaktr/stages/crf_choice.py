"""The CRF that a recipe asks for."""

from __future__ import annotations

from typing import Any

from weaktr.crf import PRESETS, CrfSettings
from weaktr.recipes import make


def choose_crf(setting: str | dict[str, Any] | None) -> CrfSettings | None:
    """CRF settings from a recipe's value.

    Args:
        setting: a preset's name, the fields of `CrfSettings`, or None / "none" for no CRF.

    Raises:
        ValueError: unknown preset or field.
    """
    if setting is None or setting == "none":
        return None
    if isinstance(setting, str):
        if setting not in PRESETS:
            raise ValueError(
                f"crf: expected one of {', '.join(sorted(PRESETS))}, none, or explicit settings; "
                f"got {setting!r}"
            )
        return PRESETS[setting]
    return make(CrfSettings, setting, origin="crf")
