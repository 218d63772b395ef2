"""`crucible run` and `crucible resume`."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.cli.live import LiveTable, PlainProgress
from crucible_tinkex.cli.tables import leaderboard_table, print_table, verdict
from crucible_tinkex.config import Experiment, parse_assignment
from crucible_tinkex.launch import launch
from crucible_tinkex.leaderboard import summary
from crucible_tinkex.preparation import PreparedSweep, load_sweep, prepare
from crucible_tinkex.registry import SweepState


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
    return _run(prepared, address=address, json=json, quiet=quiet)


def resume_sweep(name: str, *, storage: str, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    prepared = prepare(load_sweep(storage, name), storage=storage, name=name)
    return _run(prepared, address=address, json=json, quiet=quiet)


def _run(prepared: PreparedSweep, *, address: str | None, json: bool, quiet: bool) -> int:
    for warning in prepared.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    search = prepared.experiment.search
    with (
        LiveTable(search.metric, search.direction)
        if _is_live(quiet)
        else PlainProgress(quiet=quiet) as progress
    ):
        result = launch(prepared, address=address, observer=progress.show)
    if json:
        print(json_module.dumps(summary(result.state, prepared.paths)))
    else:
        _print_result(result.state, prepared)
    return result.exit_code


def _is_live(quiet: bool) -> bool:
    return sys.stderr.isatty() and not quiet


def _print_result(state: SweepState, prepared: PreparedSweep) -> None:
    print_table(leaderboard_table(state))
    print(verdict(state))
    root = prepared.paths.root
    storage = "" if root.parent == Path("runs").resolve() else f" --storage {root.parent}"
    print(f"\nresults: {root}\nlook:    crucible tb {prepared.name}{storage}")
