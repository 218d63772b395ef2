"""`crucible run` and `crucible resume`.

Everything is checked before Ray is imported, so that a mistake is reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.config import Experiment, parse_assignment
from crucible_tinkex.sweep.preparation import PreparedSweep, load_sweep, prepare


def read_experiment(file: Path, assignments: Sequence[str]) -> tuple[Experiment, str]:
    """The experiment and the text that it was read from."""
    overrides = dict(parse_assignment(a) for a in assignments)
    experiment = Experiment.from_toml(file, overrides=overrides)
    return experiment, file.read_text(encoding="utf-8")


def run_file(
    file: Path,
    assignments: Sequence[str],
    *,
    name: str | None,
    storage: str | None,
    address: str | None,
    json: bool,
    quiet: bool,
) -> int:
    """Returns the exit code."""
    experiment, source = read_experiment(file, assignments)
    prepared = prepare(experiment, storage=storage, name=name, source=source)
    return _execute(prepared, address=address, json=json, quiet=quiet)


def resume_sweep(name: str, *, storage: str, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    prepared = prepare(load_sweep(storage, name), storage=storage, name=name)
    return _execute(prepared, address=address, json=json, quiet=quiet)


def _execute(prepared: PreparedSweep, *, address: str | None, json: bool, quiet: bool) -> int:
    from crucible_tinkex.cli.execution import execute

    return execute(prepared, address=address, json=json, quiet=quiet)
