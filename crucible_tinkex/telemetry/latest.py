"""The newest numbers of every trial, folded from the event stream, for a live table.

Guarantee: the order in which events of different trials arrive makes no difference, and events of a
replaced attempt change nothing. It keeps one number per trial and metric name, no history (`query`
has that), and nothing durable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.attempts import resumed_step


@dataclass
class _Trial:
    attempt: int = 0
    step: int = 0
    time_us: int = 0
    state: str = ""
    waiting: dict[str, Any] | None = None
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)


def wait_of(name: str, extra: str) -> dict[str, Any] | None:
    """What a `queue_state` event says is waited for: `state`, `reason`, `resume_at`; None: nothing
    any more."""
    return None if name == "active" else {"state": name, **json.loads(extra)}


class LatestMetrics:
    """`feed` it events; `snapshot` for a table."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}

    def feed(self, event: Event) -> None:
        """Fold one event in; one of a replaced attempt, or of no trial, is ignored."""
        if not event.trial_id:
            return
        trial = self._trials.get(event.trial_id)
        if trial is None:
            trial = self._trials[event.trial_id] = _Trial()
        if event.kind == "trial_state":  # the controller's, which knows no attempt
            trial.state = event.name or trial.state
            trial.time_us = max(trial.time_us, event.time_us)
        elif event.attempt >= trial.attempt:
            self._fold(trial, event)

    @staticmethod
    def _fold(trial: _Trial, event: Event) -> None:
        if event.attempt > trial.attempt:  # it goes back to a checkpoint: later numbers are void
            announced = resumed_step(event.extra) if event.kind == "session_start" else None
            start = event.step if announced is None else announced
            trial.attempt, trial.step, trial.waiting = event.attempt, start, None
            trial.metrics = {n: m for n, m in trial.metrics.items() if m[0] <= start}
        if event.kind == "queue_state":
            trial.waiting = wait_of(event.name, event.extra)
        elif event.kind in ("session_start", "session_end"):
            trial.waiting = None
        if event.step > trial.step:
            trial.step = event.step
        if event.time_us > trial.time_us:
            trial.time_us = event.time_us
        if event.value is not None and event.name:
            known = trial.metrics.get(event.name)
            if known is None or event.step >= known[0]:
                trial.metrics[event.name] = (event.step, event.value)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """`trial_id` to `attempt`, `step`, `time_us`, `state`, `metrics` (name to value) and
        `waiting`: None, or `state`, `reason` and `resume_at` (Unix seconds) of what the service
        keeps it waiting for."""
        return {
            trial_id: {
                "attempt": trial.attempt,
                "step": trial.step,
                "time_us": trial.time_us,
                "state": trial.state,
                "waiting": trial.waiting,
                "metrics": {name: value for name, (_, value) in trial.metrics.items()},
            }
            for trial_id, trial in self._trials.items()
        }
