"""Keeps a running sweep's view current, from its state and what telemetry saw since then."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from crucible_tinkex.registry import TERMINAL, SweepState
from crucible_tinkex.sweep.ports import TelemetryPort
from crucible_tinkex.sweep.results.views.view import Observer, SweepView, TrialView


class Shown:
    """A `SweepView` and who looks at it."""

    def __init__(self, view: SweepView, telemetry: TelemetryPort, observer: Observer) -> None:
        self._view = view
        self._telemetry = telemetry
        self._observer = observer
        self._live: dict[str, Mapping[str, Any]] = {}
        self._views: dict[str, TrialView] = {}
        """Of every trial, in the state's order; only what is live is made anew."""
        self._revision = 0

    async def refresh(self, state: SweepState) -> None:
        changes = await self._telemetry.changes(self._revision)
        trials = state.trials
        for trial in islice(trials.values(), len(self._views), None):
            self._views[trial.trial_id] = TrialView(trial, {})
        if changes is not None:
            self._revision = changes.revision
            self._live.update(changes.trials)
            self._view.faults = changes.faults
        for trial_id in self._live.keys() & trials.keys():
            trial, live = trials[trial_id], self._live[trial_id]
            if trial.state in TERMINAL:
                del self._live[trial_id]
                live = {}
            self._views[trial_id] = TrialView(trial, live)
        self._view.trials = list(self._views.values())
        self._view.measure([self._views[i] for i in self._live if i in self._views])
        self._observer(self._view)
