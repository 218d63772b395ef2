"""Runs a prepared sweep with progress on stderr, and prints what came out."""

from __future__ import annotations

import contextlib
import json as json_module
import shlex
import sys

from crucible_tinkex.cli.live import LiveTable, PlainProgress
from crucible_tinkex.cli.tables import leaderboard_table, print_table, verdict
from crucible_tinkex.config.run import DEFAULT_STORAGE
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.leaderboard import Objective
from crucible_tinkex.sweep.preparation import PreparedSweep
from crucible_tinkex.sweep.summary import summary


def execute(prepared: PreparedSweep, *, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    for warning in prepared.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    if prepared.amendments:
        print(f"amends {prepared.name}: {', '.join(prepared.amendments)}", file=sys.stderr)
    with (
        LiveTable(Objective.asked(prepared.experiment))
        if _is_live(quiet)
        else PlainProgress(quiet=quiet) as progress,
        contextlib.redirect_stdout(sys.stderr),  # where Ray's own messages belong
    ):
        result = Launch(prepared, address=address, observer=progress.show).run()
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
    where = command_arguments(prepared.paths)
    left = prepared.policy().planned - (len(state.trials) - len(state.open))
    if state.open or state.ended is None:
        print(f"\ninterrupted with {left} trials to go; continue: crucible resume {where}")
    print(f"\nresults: {prepared.paths.root}\nlook:    crucible tb {where}")


def command_arguments(paths: SweepPaths) -> str:
    """How to name a sweep on the command line, from the current folder."""
    storage = paths.root.parent
    name = shlex.quote(paths.root.name)
    if storage == SweepPaths.of(DEFAULT_STORAGE, paths.root.name).root.parent:
        return name
    return f"{name} --storage {shlex.quote(str(storage))}"
