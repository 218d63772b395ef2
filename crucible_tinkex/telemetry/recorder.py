"""What the telemetry actor does with a batch: make it durable, then show it.

The event log is the truth and is written first; TensorBoard and the newest-values table are views,
fed by the same events (a `session_start` opens a run, a `session_end` closes it), so both can be
rebuilt from the log. A view that fails never loses an event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.latest import LatestMetrics
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.parquet import table_to_events
from crucible_tinkex.telemetry.query import query
from crucible_tinkex.telemetry.tensorboard import TensorBoardView

log = logging.getLogger(__name__)

_NEWEST = """
SELECT * FROM events WHERE trial_id <> '' QUALIFY
row_number() OVER (PARTITION BY trial_id, kind, name ORDER BY attempt DESC, step DESC, seq DESC) = 1
ORDER BY attempt, step, time
"""
_RUNNING = """
SELECT * FROM events s WHERE kind = 'session_start' AND NOT EXISTS (
    SELECT 1 FROM events e WHERE e.trial_id = s.trial_id AND (e.attempt > s.attempt
    OR (e.attempt = s.attempt AND e.kind = 'session_end')))
"""


@dataclass(frozen=True)
class Changes:
    """What changed since a revision: `trials` as `Recorder.snapshot` has them."""

    revision: int
    trials: dict[str, dict[str, Any]]
    faults: tuple[str, ...] = ()
    """What is wrong with the views; empty when they show all that the event log has."""


class Recorder:
    """Event log, TensorBoard view and newest values of one sweep."""

    def __init__(self, paths: SweepPaths) -> None:
        self._log = EventLog(paths.events)
        self._view = TensorBoardView(paths.tensorboard)
        self._latest = LatestMetrics()
        self._restore(paths.events)

    def record(self, events: Sequence[Event]) -> int:
        """Store what is new of `events`; returns how many that were, after fsync."""
        stored = self._log.append(events)
        if stored:  # not a batch sent again, which the views have had
            self._show(events)
        return stored

    def _show(self, events: Sequence[Event]) -> None:
        for event in events:
            self._latest.feed(event)
        try:
            feed_view(self._view, events)
        except StorageError:
            log.exception("TensorBoard files are behind; the event log is complete")

    def _restore(self, folder: Path) -> None:
        """Go on where a process that was killed stopped: running trials, their newest values."""
        newest = query(folder, _NEWEST)
        for event in table_to_events(newest):
            self._latest.feed(event)
        feed_view(self._view, table_to_events(query(folder, _RUNNING)))

    def snapshot(self) -> dict[str, dict[str, Any]]:
        return self._latest.snapshot()

    def changes(self, since: int) -> Changes:
        """The newest values of the trials that changed after revision `since` (-1: all)."""
        return Changes(self._latest.revision, self._latest.changes(since))

    def close(self) -> None:
        self._view.close()
        self._log.close()


def feed_view(view: TensorBoardView, events: Sequence[Event]) -> None:
    """Open and close runs where the events say so; scalars go in between."""
    batch: list[Event] = []
    for event in events:
        if event.kind not in ("session_start", "session_end"):
            batch.append(event)
            continue
        view.feed(batch)
        batch = []
        extra = json.loads(event.extra)
        if event.kind == "session_end":
            view.close_run(event.trial_id, ok=extra.get("state") == "done")
        else:
            view.open_run(
                event.trial_id,
                extra["run_name"],
                hparams=extra["hparams"],
                config_text=json.dumps(extra["config"], indent=2, sort_keys=True),
                attempt=event.attempt,
                resumed_step=extra["resumed_step"],
            )
    view.feed(batch)
