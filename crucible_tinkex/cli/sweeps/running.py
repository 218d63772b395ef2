"""`crucible run`, `resume` and `retry`.

Everything is checked before Ray is imported, so that a mistake is reported at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.config import Experiment, parse_assignment
from crucible_tinkex.sweep.orders.obeying import failed_trials
from crucible_tinkex.sweep.preparing.preparation import prepare, reopened
from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state


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
    from crucible_tinkex.cli.sweeps.execution import execute

    return execute(prepared, address=address, json=json, quiet=quiet)


def resume_sweep(name: str, *, storage: str, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    prepared = reopened(storage, name)
    from crucible_tinkex.cli.sweeps.execution import execute

    return execute(prepared, address=address, json=json, quiet=quiet)


def retry_trials(
    name: str,
    trials: Sequence[str],
    *,
    storage: str,
    address: str | None,
    json: bool,
    quiet: bool,
) -> int:
    """Take failed and lost trials up again; returns the exit code."""
    again = failed_trials(read_state(existing_sweep(storage, name)), trials)
    if not again:
        print("no trial failed or was lost", file=sys.stderr)
    retry = [trial.trial_id for trial in again]
    prepared = reopened(storage, name)
    from crucible_tinkex.cli.sweeps.execution import execute

    return execute(prepared, address=address, json=json, quiet=quiet, retry=retry)
