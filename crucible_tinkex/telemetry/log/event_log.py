"""The event log of one sweep: what was acknowledged is on disk, readable, and there exactly once.

`append` writes to the write-ahead log (`wal`) and returns after fsync; `roll` turns whole segments
into Parquet parts named by the segment's number and only then removes the segment. So a crash
between the two leaves a segment that is rolled again into the same files, and readers take a
segment's rows from one place only (`query`). A batch that a sender repeats because it saw no
acknowledgement is recognised by `(writer, seq)`, also after a restart. Memory does not grow with
the number of events, nor does the time to open: a roll that is given the owner's state stores it
with what the log must know, and opening reads that and what came later.

One owner at a time (`SweepBusyError` otherwise); one thread; local or shared file systems, not
object stores. Reading needs no `EventLog`: see `query`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import CorruptLogError, StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.storage import Lock, segment_number, segments, storage_errors
from crucible_tinkex.telemetry.log.compaction import compact
from crucible_tinkex.telemetry.log.parts import (
    Part,
    all_parts,
    coverage_of,
    evaluations_folder,
    list_parts,
    parse_part,
    remove_part,
    write_parts,
)
from crucible_tinkex.telemetry.log.schema import keys_of, stamp
from crucible_tinkex.telemetry.log.sequences import SequenceSet
from crucible_tinkex.telemetry.log.snapshot import Snapshot, read_snapshot, write_snapshot
from crucible_tinkex.telemetry.log.wal import WalSegment, read_wal, remove_segment, wal_folder


class EventLog:
    """Durable, duplicate-free store of events below `folder`; see the module for its guarantees.

    A segment is due to be rolled when it is older than `roll_seconds` or larger than `roll_rows` or
    `roll_bytes`; these bound the memory of a roll and the number of part files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        roll_rows: int = 131_072,
        roll_seconds: float = 300.0,
        roll_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._roll_rows = roll_rows
        self._roll_seconds = roll_seconds
        self._roll_bytes = roll_bytes
        self._clock = clock
        self._closed = False
        self._stored = SequenceSet()
        self.state: dict[str, Any] | None = None
        """What the owner stored with the last roll; None when nothing was stored or kept."""
        self.tail: tuple[Part, ...] = ()
        """The parts that came after `state`, all of them without one."""
        self.missing: tuple[str, ...] = ()
        """Names of parts that somebody removed."""
        self.roll_error: StorageError | None = None
        """Why the last roll failed, or None."""
        self.merge_error: StorageError | None = None
        """Why small parts are not merged: one is damaged, say. They stay as they are."""
        self._lock = Lock(wal_folder(folder) / "lock")
        try:
            self._recover()
            self._segment = self._new_segment()
        except BaseException:
            self._lock.close()
            raise

    def append(self, *batches: Sequence[Event]) -> list[list[Event]]:
        """Store the events that are not stored yet and return them, batch by batch.

        Returns after one fsync. On `StorageError` nothing is stored: send it again. `ValueError`:
        an event has a field of a wrong type; nothing is stored.
        """
        self._check_open()
        added: set[tuple[str, int]] = set()
        fresh = [self._fresh(batch, added) for batch in batches]
        events = [event for batch in fresh for event in batch]
        if events:
            if self._segment.rows == 0:
                self._segment_started = self._clock()
            self._segment.append(events)
            for event in events:
                self._stored.add(event.writer, event.seq)
        return fresh

    def _fresh(self, batch: Sequence[Event], added: set[tuple[str, int]]) -> list[Event]:
        fresh = []
        for event in batch:
            key = (event.writer, event.seq)
            if key not in self._stored and key not in added:
                added.add(key)
                fresh.append(event)
        return fresh

    def roll_if_due(self, state: Callable[[], Mapping[str, Any]] | None = None) -> bool:
        """Roll when a limit is reached; whether it did.

        A roll that fails loses nothing: it is kept as `roll_error` and tried again.
        """
        if not self._is_due():
            return False
        try:
            self.roll(state)
        except StorageError as e:
            self.roll_error = e
            return False
        return True

    def roll(self, state: Callable[[], Mapping[str, Any]] | None = None) -> int:
        """Move everything from the write-ahead log into Parquet; return the rows moved.

        `state` gives what the owner wants back as `state` after a restart; it must be the outcome
        of exactly the events appended so far. On `StorageError` nothing is lost: the events stay in
        the write-ahead log for the next roll.
        """
        self._check_open()
        if self._segment.rows:
            sealed, self._segment = self._segment, self._new_segment()
            sealed.close()
        through = self._segment.number - 1
        waiting = [p for p in segments(wal_folder(self._folder)) if segment_number(p) <= through]
        moved = sum(map(self._write_segment, waiting))
        if state is not None:
            self._store(through, state())
        for path in waiting:
            remove_segment(path)
        self.roll_error = None
        self._merge(self._through if self._has_snapshot else through)
        return moved

    def _merge(self, through: int) -> None:
        try:
            compact(self._folder, through=through)
        except StorageError as e:
            self.merge_error = e
        else:
            self.merge_error = None

    def close(self, state: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """Roll all, then give the folder free. Doing it twice does no harm."""
        if self._closed:
            return
        try:
            self.roll(state)
            self._segment.close()
            remove_segment(self._segment.path)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give the folder free as it is; the next opening recovers."""
        self._closed = True
        self._segment.close()
        self._lock.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"the event log {self._folder} is closed")

    def _is_due(self) -> bool:
        segment = self._segment
        return segment.rows > 0 and (
            segment.rows >= self._roll_rows
            or segment.size_bytes >= self._roll_bytes
            or self._clock() - self._segment_started >= self._roll_seconds
        )

    def _new_segment(self) -> WalSegment:
        self._segment_started = self._clock()
        return WalSegment(self._folder, after=self._last_part)

    def _store(self, through: int, state: Mapping[str, Any]) -> None:
        sizes = {part.key: part.size for part in list_parts(self._folder)}
        write_snapshot(self._folder, Snapshot(through, self._stored.to_json(), sizes, dict(state)))
        self._has_snapshot, self._through = True, through

    def _recover(self) -> None:
        """Finish what a killed process left, and learn what is stored."""
        folder = self._folder
        with storage_errors(self._folder):
            for place in (folder, *folder.glob("kind=*"), evaluations_folder(folder)):
                for leftover in place.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
        snapshot = read_snapshot(self._folder)
        self._has_snapshot = snapshot is not None
        self._through = snapshot.through if snapshot else 0
        self._last_part = self._through
        for path in segments(wal_folder(self._folder)):
            self._write_segment(path)
            remove_segment(path)
        parts = list_parts(self._folder)
        for part in set(all_parts(self._folder)) - set(parts):
            remove_part(part)
        self._last_part = max([self._through, *(part.last for part in parts)])
        self.tail = tuple(part for part in parts if part.last > self._through)
        if snapshot:
            self.state = snapshot.state
            self._stored.update(snapshot.coverage)
            self.missing = tuple(_missing(parts, snapshot.sizes))
        for part in self.tail:
            self._stored.update(coverage_of(part))

    def _write_segment(self, path: Path) -> int:
        """Its parts, unless the snapshot says that they are there."""
        number = segment_number(path)
        if number <= self._through:
            return 0
        table = stamp(read_wal(path))
        coverage = SequenceSet()
        for writer, seq in keys_of(table):
            coverage.add(writer, seq)
        write_parts(self._folder, table, number=number, coverage=coverage.to_json())
        return table.num_rows


def _missing(parts: Sequence[Part], sizes: Mapping[str, int]) -> list[str]:
    """The stored parts that are gone though none contains them. Raises `CorruptLogError` for one
    that has another size."""
    present = {part.key: part for part in parts}
    missing = []
    for key, size in sizes.items():
        part = present.get(key)
        if part is None:
            missing.append(key)
        elif part.size != size:
            raise CorruptLogError(
                f"{part.path} is damaged: it has {part.size} bytes and was written with {size}. "
                "Restore it from a copy, or remove it to go on without its rows"
            )
    return [key for key in missing if not _is_contained(key, parts)]


def _is_contained(key: str, parts: Sequence[Part]) -> bool:
    gone = parse_part(Path(key))
    return any(part.kind == gone.kind and part.holds(gone.first, gone.last) for part in parts)
