"""The newest numbers of every trial, folded from the event stream, for a live table.

Guarantees: the order in which events of different trials arrive makes no difference; events of a
replaced attempt change nothing; equal trials of two sweeps are two. `revision` counts the events
folded in, so a reader that remembers it asks only for what changed since, also after this process
was replaced. It keeps one number per trial and metric name, no history (`query` has that), and
nothing durable: `to_json` and `load` are for whoever stores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.attempts import resumed_step

Key = tuple[str, str]
"""`sweep_id`, empty for events of schema 1, and `trial_id`."""


@dataclass
class _Trial:
    attempt: int = 0
    step: int = 0
    time_us: int = 0
    state: str = ""
    waiting: dict[str, Any] | None = None
    phase: dict[str, Any] | None = None
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    revision: int = 0


def wait_of(name: str, extra: str) -> dict[str, Any] | None:
    """What a `queue_state` event says is waited for: `state`, `reason`, `resume_at`; None: nothing
    any more."""
    return None if name == "active" else {"state": name, **json.loads(extra)}


def _phase_of(event: Event, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a `phase` event says, and when the phase began: another `done` goes on with it."""
    told: dict[str, Any] = json.loads(event.extra)
    goes_on = before and before["phase"] == event.name and told.get("done", 0) > before["done"]
    since_us = before["since_us"] if before and goes_on else event.time_us
    seconds = (event.time_us - since_us) / 1e6
    return {"done": 0, "of": 0, **told, "phase": event.name, "since_us": since_us, "s": seconds}


class LatestMetrics:
    """`feed` it events; `snapshot` or `changes` for a table."""

    def __init__(self) -> None:
        self._trials: dict[Key, _Trial] = {}  # in the order of their last change
        self.revision = 0

    def feed(self, event: Event) -> None:
        """Fold one event in; one of a replaced attempt, or of no trial, is ignored."""
        if not event.trial_id or event.kind == "example":
            return
        self.revision += 1
        trial = self._trial((event.sweep_id, event.trial_id))
        if event.kind == "trial_state":  # the controller's, which knows no attempt
            trial.state = event.name or trial.state
            trial.time_us = max(trial.time_us, event.time_us)
        elif event.attempt >= trial.attempt:
            self._fold(trial, event)
        else:
            return
        trial.revision = self.revision
        self._touch((event.sweep_id, event.trial_id))

    def _trial(self, key: Key) -> _Trial:
        trial = self._trials.get(key)
        if trial is None:  # a trial that an older version began goes on under the sweep's own id
            trial = self._trials.pop(("", key[1]), None) or _Trial()
            self._trials[key] = trial
        return trial

    def _touch(self, key: Key) -> None:
        if next(reversed(self._trials)) != key:
            self._trials[key] = self._trials.pop(key)

    @staticmethod
    def _fold(trial: _Trial, event: Event) -> None:
        if event.attempt > trial.attempt:  # it goes back to a checkpoint: later numbers are void
            announced = resumed_step(event.extra) if event.kind == "session_start" else None
            start = event.step if announced is None else announced
            trial.attempt, trial.step = event.attempt, start
            trial.waiting = trial.phase = None
            trial.metrics = {n: m for n, m in trial.metrics.items() if m[0] <= start}
        if event.kind == "queue_state":
            trial.waiting = wait_of(event.name, event.extra)
        elif event.kind == "phase":
            trial.phase = _phase_of(event, trial.phase)
        elif event.kind in ("session_start", "session_end"):
            trial.waiting = trial.phase = None
        if event.step > trial.step:
            trial.step = event.step
        if event.time_us > trial.time_us:
            trial.time_us = event.time_us
        if event.value is not None and event.name:
            known = trial.metrics.get(event.name)
            if known is None or event.step >= known[0]:
                trial.metrics[event.name] = (event.step, event.value)

    def changes(self, since: int = -1) -> dict[str, dict[str, Any]]:
        """Of the trials that changed after revision `since` (-1: all), `trial_id` to `attempt`,
        `step`, `time_us`, `state`, `metrics` (name to value) and

        - `waiting`: None, or `state`, `reason` and `resume_at` (Unix seconds) of what the service
          keeps it waiting for;
        - `phase`: None, or `phase` (its name), how much of it is `done`, `of` how much, and that it
          began at `since_us`, `s` seconds before this was told.
        """
        found: dict[str, dict[str, Any]] = {}
        for (_, trial_id), trial in reversed(self._trials.items()):
            if trial.revision <= since:
                break
            found.setdefault(trial_id, _row(trial))
        return found

    def to_json(self) -> dict[str, Any]:
        trials = [[*key, asdict(trial)] for key, trial in self._trials.items()]
        return {"revision": self.revision, "trials": trials}

    def load(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        self.revision = stored["revision"]
        for sweep_id, trial_id, values in stored["trials"]:
            values["metrics"] = {name: tuple(pair) for name, pair in values["metrics"].items()}
            self._trials[sweep_id, trial_id] = _Trial(**values)


def _row(trial: _Trial) -> dict[str, Any]:
    return {
        "attempt": trial.attempt,
        "step": trial.step,
        "time_us": trial.time_us,
        "state": trial.state,
        "waiting": trial.waiting,
        "phase": trial.phase,
        "metrics": {name: value for name, (_, value) in trial.metrics.items()},
    }
