"""What a decision does to its trial."""

from __future__ import annotations

from collections.abc import Callable

from crucible_tinkex.registry.records import (
    DONE,
    PAUSED,
    PENDING,
    STOPPED,
    TERMINAL,
    Decision,
    TrialRecord,
)


def carry_out(trial: TrialRecord, decision: Decision) -> None:
    """Changes the trial; a kind of decision that this version does not know changes nothing."""
    if how := _HOW.get(decision.kind):
        how(trial, decision)


def _go(trial: TrialRecord, decision: Decision) -> None:
    trial.target, trial.total_steps = decision.to_step, decision.total_steps
    trial.hold = ""
    if trial.state in (PAUSED, DONE, STOPPED):
        trial.state = PENDING


def _pause(trial: TrialRecord, decision: Decision) -> None:
    if trial.state not in TERMINAL:
        trial.state, trial.hold = PAUSED, decision.by


def _stop(trial: TrialRecord, decision: Decision) -> None:
    if trial.state not in TERMINAL:
        trial.state, trial.error, trial.hold = STOPPED, decision.reason, decision.by


def _retry(trial: TrialRecord, decision: Decision) -> None:
    trial.state, trial.error = PENDING, None
    trial.retries += 1


_HOW: dict[str, Callable[[TrialRecord, Decision], None]] = {
    "start": _go,
    "fork": _go,
    "confirm": _go,
    "advance": _go,
    "pause": _pause,
    "stop": _stop,
    "retry": _retry,
}
