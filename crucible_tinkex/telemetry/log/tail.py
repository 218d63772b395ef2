"""What came into an event log since a cursor, read while its owner appends, rolls and compacts.

Guarantees: each acknowledged event comes once, and the events of a writer come in their order; over
writers the order is that of the log, and within segments that are in Parquet already, that of time.
It rests on files alone, so it goes on when the log's owner dies and another takes over. An event is
known by `(writer, seq)`, so it does not matter that a segment, read half from the write-ahead log,
is met again in Parquet or in a merged part. No lock; per-example rows are left out.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.storage import segment_number, segments, storage_errors
from crucible_tinkex.telemetry.log.parts import (
    EXAMPLE,
    Part,
    coverage_of,
    list_parts,
    read_events_part,
)
from crucible_tinkex.telemetry.log.schema import EVENT_SCHEMA, keys_of, stamp
from crucible_tinkex.telemetry.log.sequences import SequenceSet
from crucible_tinkex.telemetry.log.wal import read_wal, wal_folder

Cursor = Mapping[str, Any]
"""JSON: `through`, the last segment that was read to its end, and `seen`, which `(writer, seq)`
were read."""

_TRIES = 200


class LogTail:
    """A reader of the `events` folder of a sweep, which need not be there yet. One thread."""

    def __init__(
        self, folder: Path, *, kinds: Collection[str] | None = None, after: Cursor | None = None
    ) -> None:
        """`kinds`: the only ones that are wanted (None: all). Raises `ConfigError` for a cursor
        that is none."""
        self._folder = folder
        self._kinds = None if kinds is None else frozenset(kinds)
        self._through, self._seen = _parsed(after)
        self._segment = 0
        self._rows = 0
        self._size = -1

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the reader stands: `after` of another one that goes on there."""
        return {"through": self._through, "seen": self._seen.to_json()}

    def read(self) -> pa.Table | None:
        """The next rows in `EVENT_SCHEMA`, in order, maybe none of the wanted kinds; None when
        there is nothing more now. Raises `CorruptLogError` that names a damaged file."""
        for _ in range(_TRIES):
            try:
                done, rows = self._try()
            except FileNotFoundError:  # compacted since it was listed
                done, rows = False, None
            if done:
                return rows
            time.sleep(0.005)
        raise StorageError(f"{self._folder} changed all the time while it was read; try again")

    def _try(self) -> tuple[bool, pa.Table | None]:
        """Whether the listing held, and what it gave.

        Parts count up to the first segment that is still in the write-ahead log; a segment that
        went away since it was listed has all its parts.
        """
        waiting = [p for p in self._listed() if segment_number(p) > self._through]
        if not waiting:
            return self._from_parts(None)
        path, sealed = waiting[0], len(waiting) > 1
        number = segment_number(path)
        size = _size(path)
        if number == self._segment and size == self._size and not sealed:
            return True, None
        batches = read_wal(path)
        gone = not batches and not path.exists()
        done, rows = self._from_parts(number + 1 if gone else number)
        if not done or rows is not None:
            return done, rows
        if gone or (sealed and not batches):
            self._through = number
            return False, None
        rows = self._grown(number, size, stamp(batches))
        if sealed:
            self._through = number
        return rows is not None or not sealed, rows

    def _listed(self) -> list[Path]:
        return segments(wal_folder(self._folder))

    def _grown(self, number: int, size: int, rows: pa.Table) -> pa.Table | None:
        """What of a segment was not read yet."""
        count = rows.num_rows
        rows = rows.slice(self._rows) if number == self._segment else self._unseen(rows)
        self._segment, self._rows, self._size = number, count, size
        for writer, seq in keys_of(rows):
            self._seen.add(writer, seq)
        return self._wanted(rows) if rows.num_rows else None

    def _from_parts(self, limit: int | None) -> tuple[bool, pa.Table | None]:
        """The next parts of segments before `limit` (None: all, there is no write-ahead log)."""
        listed = self._parts()
        if limit is not None and any(p.first < limit <= p.last for p in listed):
            return False, None  # rolled and merged since
        group = _next_group([p for p in listed if limit is None or p.last < limit])
        if not group:
            return limit is not None or not self._changed(limit, listed), None
        rows = pa.concat_tables(map(read_events_part, group))
        coverage = [coverage_of(part) for part in group]
        if self._changed(limit, listed):
            return False, None
        rows = _in_order(self._unseen(rows))
        for covered in coverage:
            self._seen.update(covered)
        self._through = max(part.last for part in group)
        return True, rows

    def _parts(self) -> list[Part]:
        wanted = self._kinds
        return [
            part
            for part in list_parts(self._folder)
            if part.kind != EXAMPLE
            and part.last > self._through
            and (wanted is None or part.kind in wanted)
        ]

    def _changed(self, limit: int | None, listed: Sequence[Part]) -> bool:
        """Whether a listing that was made in the midst of a roll or merge may lack something."""
        if limit is None and any(segment_number(p) > self._through for p in self._listed()):
            return True
        now = {part for part in self._parts() if limit is None or part.last < limit}
        return not now <= set(listed)

    def _unseen(self, rows: pa.Table) -> pa.Table:
        fresh = [key not in self._seen for key in keys_of(rows)]
        return rows if all(fresh) else rows.filter(pa.array(fresh, pa.bool_()))

    def _wanted(self, rows: pa.Table) -> pa.Table:
        if self._kinds is None:
            return rows.filter(pc.field("kind") != EXAMPLE)
        return rows.filter(pc.field("kind").isin(sorted(self._kinds)))


def advanced(cursor: Cursor, rows: pa.Table) -> dict[str, Any]:
    """The cursor of a reader that stood at `cursor` and has since given `rows`."""
    through, seen = _parsed(cursor)
    for writer, seq in keys_of(rows):
        seen.add(writer, seq)
    return {"through": through, "seen": seen.to_json()}


def _parsed(after: Cursor | None) -> tuple[int, SequenceSet]:
    seen = SequenceSet()
    if after is None:
        return 0, seen
    try:
        seen.update(after["seen"])
        return int(after["through"]), seen
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"after = {after!r} is no cursor: give the `cursor` of a subscription as it was"
        ) from e


def _size(path: Path) -> int:
    """In bytes; -1 when it is gone."""
    with storage_errors(path):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return -1


def _next_group(parts: Sequence[Part]) -> list[Part]:
    """The first parts of all kinds whose segments overlap."""
    group: list[Part] = []
    for part in sorted(parts, key=lambda p: p.first):
        if group and part.first > max(p.last for p in group):
            break
        group.append(part)
    return group


def _in_order(rows: pa.Table) -> pa.Table:
    """By time, but never against the order of a writer, whose clock may have been set back."""
    if not rows.num_rows:
        return EVENT_SCHEMA.empty_table()
    rows = rows.sort_by([("writer", "ascending"), ("seq", "ascending")])
    times = rows["time"].cast(pa.int64()).to_numpy()
    writers = rows["writer"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(writers, prepend=-1))
    reached = np.concatenate([np.maximum.accumulate(t) for t in np.split(times, starts[1:])])
    return rows.take(np.argsort(reached, kind="stable"))
