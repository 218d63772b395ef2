"""Runs a prepared sweep with progress on stderr, and prints what came out."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from pathlib import Path

from crucible_tinkex.cli.live import LiveTable, PlainProgress
from crucible_tinkex.cli.tables import leaderboard_table, print_table, verdict
from crucible_tinkex.launch import launch
from crucible_tinkex.leaderboard import summary
from crucible_tinkex.preparation import PreparedSweep
from crucible_tinkex.registry import TERMINAL, SweepState


def execute(prepared: PreparedSweep, *, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    for warning in prepared.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    search = prepared.experiment.search
    with (
        LiveTable(search.metric, search.objective_direction)
        if _is_live(quiet)
        else PlainProgress(quiet=quiet) as progress,
        contextlib.redirect_stdout(sys.stderr),  # where Ray's own messages belong
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
    where = prepared.name
    where += "" if root.parent == Path("runs").resolve() else f" --storage {root.parent}"
    left = sum(t.state not in TERMINAL for t in state.trials.values())
    if left:
        print(f"\ninterrupted with {left} trials to go; continue: crucible resume {where}")
    print(f"\nresults: {root}\nlook:    crucible tb {where}")
