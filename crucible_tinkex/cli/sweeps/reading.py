"""The experiment that a command is given: a file, and what `--set` says instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.config import Experiment, parse_assignment


def read_experiment(file: Path, assignments: Sequence[str]) -> tuple[Experiment, str]:
    """The experiment and the text that it was read from."""
    overrides = dict(parse_assignment(a) for a in assignments)
    experiment = Experiment.from_toml(file, overrides=overrides)
    return experiment, file.read_text(encoding="utf-8")
