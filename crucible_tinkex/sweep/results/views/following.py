"""What a sweep and its open trials do now, read from its folder: for whoever looks on from outside,
again and again."""

from __future__ import annotations

from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import RUNNING, SweepState, TrialRecord
from crucible_tinkex.registry.journal import JournalReader
from crucible_tinkex.sweep.results.views.summary import settle, waits
from crucible_tinkex.sweep.results.views.view import TrialView


class Followed:
    """The state of a sweep; every `read` costs what is new in its journal."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._journal = JournalReader(paths.journal)
        self._state = SweepState()
        self._abandoned: list[TrialRecord] = []

    def read(self) -> SweepState:
        """As `read_state` has it; the same object every time, unless the journal was begun anew."""
        for trial in self._abandoned:
            trial.state = RUNNING
        records, is_all = self._journal.read()
        if is_all:
            self._state = SweepState()
        self._state.fold(records)
        self._abandoned = settle(self._state, self._paths)
        return self._state


_COLUMNS = {"train/nll": "train_nll", "perf/tokens_per_s": "tokens_per_s"}


def open_trials(state: SweepState, paths: SweepPaths) -> list[TrialView]:
    """Those that have not ended, the running ones first, with their newest telemetry."""
    running = [t.trial_id for t in state.open.values() if t.state == RUNNING]
    newest = _newest(running, paths)
    waiting = waits(state, paths)
    views = [
        TrialView(trial, {**newest.get(trial_id, {}), "waiting": waiting.get(trial_id)})
        for trial_id, trial in state.open.items()
    ]
    return sorted(views, key=lambda view: (view.state != RUNNING, view.record.index))


def _newest(trial_ids: list[str], paths: SweepPaths) -> dict[str, dict[str, Any]]:
    """As `LatestMetrics` tells it, as far as steps go."""
    if not (trial_ids and paths.events.is_dir()):
        return {}
    from crucible_tinkex.telemetry.query import query

    newest = ", ".join(f"arg_max({c}, step) AS {c}" for c in _COLUMNS.values())
    ids = ", ".join(f"'{trial_id}'" for trial_id in trial_ids)
    rows = query(
        paths.events,
        f"SELECT trial_id, max(step) AS step, {newest} FROM steps "
        f"WHERE trial_id IN ({ids}) GROUP BY trial_id",
    ).to_pylist()
    return {
        row["trial_id"]: {
            "step": row["step"],
            "metrics": {m: row[c] for m, c in _COLUMNS.items() if row[c] is not None},
        }
        for row in rows
    }
