"""What the telemetry actor does with a batch: make it durable, then show it.

The event log is the truth and is written first; TensorBoard and the newest-values table are views,
folded from the same events. A view that fails never loses an event. Where the views stand is stored
with every roll of the log, so opening reads that and the events that came later, however old the
sweep is; what a killed process had written of these to TensorBoard is recognised. A run of
TensorBoard that could not be written is made anew from the log at the next roll.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.latest import LatestMetrics
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.parts import EXAMPLE, read_events_part
from crucible_tinkex.telemetry.log.schema import table_to_events
from crucible_tinkex.telemetry.log.snapshot import read_snapshot
from crucible_tinkex.telemetry.query import scan_events
from crucible_tinkex.telemetry.tensorboard import TensorBoardView

log = logging.getLogger(__name__)

_IN_TIME: Any = [(name, "ascending") for name in ("trial_id", "attempt", "time", "writer", "seq")]


@dataclass(frozen=True)
class Changes:
    """What changed since a revision: `trials` as `LatestMetrics.changes` has them."""

    revision: int
    trials: dict[str, dict[str, Any]]
    faults: tuple[str, ...] = ()
    """What is wrong with log or views; empty when all is stored and shown."""


class Recorder:
    """Event log, TensorBoard view and newest values of one sweep."""

    def __init__(self, paths: SweepPaths, *, rebuild: bool = False, **limits: Any) -> None:
        """`rebuild`: make the TensorBoard files anew. `limits` are those of `EventLog`.

        Raises `CorruptLogError` that names the file when the write-ahead log, or a part that is
        read here or has another size than it was written with, is damaged.
        """
        self._paths = paths
        self._log = EventLog(paths.events, **limits)
        self._view = TensorBoardView(paths.tensorboard)
        self._latest = LatestMetrics()
        try:
            self._restore(self._log.state, rebuild=rebuild)
        except BaseException:
            self._log.abandon()
            raise

    def record(self, events: Sequence[Event]) -> int:
        """Store what is new of `events`; returns how many that were, after fsync."""
        return self.record_batches([events])[0]

    def record_batches(self, batches: Sequence[Sequence[Event]]) -> list[int]:
        """As `record` for each batch, with one fsync for all."""
        stored = self._log.append(*batches)
        fresh = [event for batch in stored for event in batch]
        self._show(fresh)
        if self._log.roll_if_due(self._state):
            self._repair()
        return [len(batch) for batch in stored]

    def _show(self, events: Sequence[Event], *, again: bool = False) -> None:
        for event in events:
            self._latest.feed(event)
        self._view.feed(events, again=again)

    def _state(self) -> dict[str, Any]:
        return {"latest": self._latest.to_json(), "tensorboard": self._view.to_json()}

    def _restore(self, state: Mapping[str, Any] | None, *, rebuild: bool) -> None:
        """Go on where a process that was killed stopped."""
        if state is None:
            self._rebuild(latest=True)
            self._log.roll(self._state)
            return
        self._latest.load(state["latest"])
        self._view.load(state["tensorboard"])
        for events in self._tail():
            self._show(events, again=True)
        if rebuild:
            self._view = TensorBoardView(self._paths.tensorboard)
            self._rebuild(latest=False)
        self._repair()

    def _tail(self) -> Iterator[list[Event]]:
        """What the log has beyond its owner's stored state."""
        segments = {part.last for part in self._log.tail}
        for last in sorted(segments):
            parts = [p for p in self._log.tail if p.last == last and p.kind != EXAMPLE]
            if parts:
                table = pa.concat_tables(map(read_events_part, parts))
                yield table_to_events(table.sort_by(_IN_TIME))

    def _rebuild(self, *, latest: bool) -> None:
        """Write TensorBoard's files anew from all events, then put them in place of the old."""
        folder = self._paths.tensorboard
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        self._view.move(beside)
        for table in scan_events(self._paths.events):
            events = table_to_events(table)
            self._view.feed(events)
            for event in events if latest else ():
                self._latest.feed(event)
        try:
            _replace_folder(folder, beside)
        except OSError as e:
            self._view.fail(f"{folder} cannot be replaced: {e}")
        self._view.move(folder)

    def _repair(self) -> None:
        """Make the runs anew that TensorBoard lacks something of."""
        behind = self._view.behind
        if not behind:
            return
        try:
            self._view.forget(behind)
            for table in scan_events(self._paths.events, trial_ids=behind):
                self._view.feed(table_to_events(table))
        except StorageError as e:
            self._view.fail(str(e), behind)
        for fault in self._view.faults():
            log.warning(fault)

    def changes(self, since: int) -> Changes:
        """The newest values of the trials that changed after revision `since` (-1: all)."""
        return Changes(self._latest.revision, self._latest.changes(since), self.faults())

    def faults(self) -> tuple[str, ...]:
        """What is wrong, in a sentence each."""
        faults = [f"{name} of the event log is gone" for name in self._log.missing]
        if self._log.roll_error:
            faults.append(f"events stay in the write-ahead log: {self._log.roll_error}")
        if self._log.merge_error:
            faults.append(f"parts of the event log stay small: {self._log.merge_error}")
        return (*faults, *self._view.faults())

    def close(self) -> None:
        """Store all; doing it twice does no harm."""
        self._repair()
        self._log.close(self._state)


def _replace_folder(folder: Path, new: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    if new.exists():
        os.replace(new, folder)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover)


def rebuild_tensorboard(paths: SweepPaths) -> tuple[str, ...]:
    """Write a sweep's TensorBoard files anew from its events; returns what could not be shown.

    Raises `SweepBusyError` while the sweep's telemetry is open elsewhere.
    """
    recorder = Recorder(paths, rebuild=True)
    faults = recorder.faults()
    recorder.close()
    return faults


def stored_faults(paths: SweepPaths) -> tuple[str, ...]:
    """What was wrong with the views when the log was last rolled; takes no lock."""
    snapshot = read_snapshot(paths.events)
    if snapshot is None or "tensorboard" not in snapshot.state:
        return ()
    view = TensorBoardView(paths.tensorboard)
    try:
        view.load(snapshot.state["tensorboard"])
    except (KeyError, TypeError, ValueError):  # another version's: it may be shown, not continued
        return ()
    return view.faults()
