"""Arguments and options that the commands of this room share."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from crucible_tinkex.errors import ConfigError

Sweep = Annotated[str, typer.Argument(help="Name of the sweep.", show_default=False)]
Trial = Annotated[str | None, typer.Argument(help="Its id, name or number (default: the best).")]
Storage = Annotated[str, typer.Option(help="Folder of all sweeps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")]

DEFAULT_STORAGE = "runs"


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
