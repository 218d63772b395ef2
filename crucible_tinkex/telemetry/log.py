"""The event log of one sweep: what was acknowledged is on disk, readable, and there exactly once.

`append` writes to the write-ahead log (`wal`) and returns after fsync; `roll` turns whole segments
into Parquet parts named by the segment's number and only then removes the segment. So a crash
between the two leaves a segment that is rolled again into the same files, and readers take a
segment's rows from one place only (`query`). A batch that a sender repeats because it saw no
acknowledgement is recognised by `(writer, seq)`, also after a restart: each part carries what its
segment covers. Memory does not grow with the number of events.

One owner at a time (`SweepBusyError` otherwise); one thread; local or shared file systems, not
object stores. Reading needs no `EventLog`: see `query`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.storage import Lock, segment_number, segments, storage_errors
from crucible_tinkex.telemetry.parquet import (
    list_parts,
    part_number,
    read_metadata,
    stamp,
    write_parts,
)
from crucible_tinkex.telemetry.sequences import SequenceSet
from crucible_tinkex.telemetry.wal import WalSegment, read_wal, remove_segment, wal_folder


class EventLog:
    """Durable, duplicate-free store of events below `folder`; see the module for its guarantees.

    A segment is rolled by the append that finds it older than `roll_seconds` or larger than
    `roll_rows` or `roll_bytes`; these bound the memory of a roll and the number of part files.
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
        self.roll_error: StorageError | None = None
        self._lock = Lock(wal_folder(folder) / "lock")
        try:
            self._recover()
            self._segment = self._new_segment()
        except BaseException:
            self._lock.close()
            raise

    def append(self, batch: Sequence[Event]) -> int:
        """Store the events that are not stored yet and return how many those were.

        Returns after fsync. On `StorageError` nothing of the batch is stored: send it again. A roll
        that fails does not fail the append, whose events are safe; it is kept as `roll_error` and
        tried again.
        """
        self._check_open()
        fresh: dict[tuple[str, int], Event] = {}
        for event in batch:
            key = (event.writer, event.seq)
            if key not in self._stored and key not in fresh:
                fresh[key] = event
        if fresh:
            if self._segment.rows == 0:
                self._segment_started = self._clock()
            self._segment.append(list(fresh.values()))
            for writer, seq in fresh:
                self._stored.add(writer, seq)
        if self._is_due():
            try:
                self.roll()
            except StorageError as e:
                self.roll_error = e
        return len(fresh)

    def roll(self) -> int:
        """Move everything from the write-ahead log into Parquet; return the rows moved.

        On `StorageError` nothing is lost: the events stay in the write-ahead log for the next roll.
        """
        self._check_open()
        if self._segment.rows:
            sealed, self._segment = self._segment, self._new_segment()
            sealed.close()
        moved = self._roll_sealed(before=self._segment.number)
        self.roll_error = None
        return moved

    def close(self) -> None:
        """Roll all, then give the folder free. Doing it twice does no harm."""
        if self._closed:
            return
        try:
            self.roll()
            self._segment.close()
            remove_segment(self._segment.path)
        finally:
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

    def _recover(self) -> None:
        """Finish what a killed process left: remove half-written files, roll its segments."""
        with storage_errors(self._folder):
            for leftover in self._folder.glob("kind=*/.*.tmp"):
                leftover.unlink(missing_ok=True)
        self._last_part = 0
        self._roll_sealed(before=None)
        by_number = {part_number(path): path for path in list_parts(self._folder)}
        self._last_part = max(by_number, default=0)
        for path in by_number.values():  # every part tells what its whole segment covers
            self._stored.update(json.loads(read_metadata(path).get("coverage", "{}")))

    def _roll_sealed(self, *, before: int | None) -> int:
        """Roll every segment with a number below `before` (None: all), oldest first."""
        moved = 0
        for path in segments(wal_folder(self._folder)):
            if before is None or segment_number(path) < before:
                moved += self._roll_segment(path)
        return moved

    def _roll_segment(self, path: Path) -> int:
        table = stamp(read_wal(path))
        if table.num_rows:
            coverage = SequenceSet()
            writers: list[Any] = table["writer"].to_pylist()
            numbers: list[Any] = table["seq"].to_pylist()
            for writer, seq in zip(writers, numbers, strict=True):
                coverage.add(writer, seq)
            number = segment_number(path)
            about = {"segment": number, "coverage": coverage.to_json()}
            write_parts(self._folder, table, number=number, metadata=about)
        remove_segment(path)
        return table.num_rows
