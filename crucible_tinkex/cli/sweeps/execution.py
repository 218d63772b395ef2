"""Runs a prepared sweep with progress on stderr, and prints what came out.

Ray is imported when the sweep runs and not before, so that a mistake is reported at once.
"""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from crucible_tinkex.cli.findings.concluding import print_findings
from crucible_tinkex.cli.terminal.live import LiveTable, PlainProgress
from crucible_tinkex.registry import FAIL_FAST
from crucible_tinkex.sweep.deciding.budget import BUDGET
from crucible_tinkex.sweep.orders.hints import going_on, surer, sweep_arguments
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.views.summary import summary

if TYPE_CHECKING:
    from crucible_tinkex.sweep.launch import SweepResult


def execute(
    prepared: PreparedSweep,
    *,
    address: str | None,
    json: bool,
    quiet: bool,
    retry: Sequence[str] = (),
) -> int:
    """Run it, with the failed trials `retry` taken up again. Returns the exit code."""
    result = run_prepared(prepared, address=address, quiet=quiet, retry=retry)
    if json:
        print(json_module.dumps(summary(result.state, prepared.paths)))
    else:
        _print_result(result, prepared)
    return result.exit_code


def run_prepared(
    prepared: PreparedSweep, *, address: str | None, quiet: bool, retry: Sequence[str] = ()
) -> SweepResult:
    """Run it with progress on stderr, and nothing on stdout."""
    from crucible_tinkex.sweep.launch import Launch

    with (
        LiveTable(Objective.asked(prepared.experiment))
        if sys.stderr.isatty() and not quiet
        else PlainProgress(quiet=quiet) as progress,
        contextlib.redirect_stdout(sys.stderr),  # where Ray's own messages belong
    ):
        launch = Launch(
            prepared, address=address, observer=progress.show, leave=progress.close, retry=retry
        )
        return launch.run(begun=partial(_introduce, prepared))


def _introduce(prepared: PreparedSweep) -> None:
    for note in prepared.notes:
        print(f"auto: {note}", file=sys.stderr)
    for warning in prepared.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    if prepared.amendments:
        print(f"amends {prepared.name}: {', '.join(prepared.amendments)}", file=sys.stderr)


def _print_result(result: SweepResult, prepared: PreparedSweep) -> None:
    state = result.state
    said = print_findings(state, prepared.paths)
    where, again = sweep_arguments(prepared.paths), going_on(state, prepared.paths)
    if state.ended_by == BUDGET:
        print(f"\nended by {state.ended}; more: {again}")
    elif state.ended_by == FAIL_FAST:
        print(f"\nended by {state.ended}\nonce it is mended: {again}")
    elif state.open or state.ended is None:
        print(f"\ninterrupted with {result.left} trials to go; continue: {again}")
    elif command := surer(state, prepared.paths, said):
        print(f"\nto be surer: {command}")
    print(f"\nresults: {prepared.paths.root}\nlook:    crucible report {where}, or tb {where}")
