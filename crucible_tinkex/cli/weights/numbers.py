"""Numbers as they are typed and as they are shown."""

from __future__ import annotations

import math

from crucible_tinkex.errors import ConfigError


def numbers(assignments: list[str] | None) -> dict[str, float]:
    """`name=value` pairs. Raises `ConfigError`."""
    found = {}
    for text in assignments or []:
        name, separator, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator or not name.strip():
            raise ConfigError(f"{text!r} must have the form eval/nll=0.5")
    return found


def number_text(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"
