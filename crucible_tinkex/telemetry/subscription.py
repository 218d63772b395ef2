"""The events of a sweep or session as they come, from any process that sees its folder.

It follows the log on disk (`log.tail`), not the actor that writes it: what a subscriber gets was
durable before, a slow one holds nobody up, and one that dies goes on from its `cursor`. So the
original's stream, which had no subscribers and never ended, needs no broker here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import is_locked
from crucible_tinkex.telemetry.log.schema import EVENT_SCHEMA, table_to_events
from crucible_tinkex.telemetry.log.tail import Cursor, LogTail, advanced
from crucible_tinkex.telemetry.log.wal import wal_folder

_PIECE_ROWS = 5_000  # so many events at a time become objects


class Subscription:
    """An iterator over `Event`, for `for` and for `async for`; ends when the sweep has ended and
    all was given, or when it is closed. One reader; `close` may come from any thread.

    Each event comes once, those of a trial's attempt in their order; also those of attempts that a
    newer one replaced. Raises `CorruptLogError` that names a damaged file.
    """

    def __init__(
        self,
        paths: SweepPaths,
        *,
        kinds: Collection[str] | None = None,
        trial_id: str | None = None,
        name: str | None = None,
        after: Cursor | None = None,
        replay: bool = True,
        poll_s: float = 0.25,
        wait_s: float = 0.0,
        lives: Callable[[], bool] | None = None,
    ) -> None:
        """`replay` False leaves out what is there already. `wait_s`: so long it waits for a sweep
        that does not run yet. `lives` by default: a process holds the folder."""
        if poll_s <= 0 or wait_s < 0:
            raise ConfigError(f"poll_s = {poll_s} must be positive, and wait_s = {wait_s} not less")
        self._tail = LogTail(paths.events, kinds=kinds, after=after)
        self._filters = {"trial_id": trial_id, "name": name}
        self._poll_s = poll_s
        self._lives = lives or (lambda: _is_held(paths))
        self._start_by: float | None = time.monotonic() + wait_s
        self._closed = threading.Event()
        self._reading = threading.Lock()
        self._before: Cursor = self._tail.cursor
        self._rows: pa.Table = EVENT_SCHEMA.empty_table()
        self._given = 0
        self._ready: Iterator[Event] = iter(())
        if not replay:
            while self._tail.read() is not None:
                pass
            self._before = self._tail.cursor

    @property
    def cursor(self) -> dict[str, Any]:
        """JSON that stands for what was given so far; `after` of a later subscription, which goes
        on with the next event."""
        with self._reading:
            if self._is_empty:
                return self._tail.cursor
            return advanced(self._before, self._rows.slice(0, self._given))

    def close(self) -> None:
        """End the iteration, also one that waits. Doing it twice does no harm."""
        self._closed.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Event:
        while (event := self._take()) is None:
            if not self._fill():
                raise StopIteration
            if self._is_empty:
                self._closed.wait(self._poll_s)
        return event

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while (event := self._take()) is None:
            if not await asyncio.to_thread(self._fill):
                raise StopAsyncIteration
            if self._is_empty:
                await asyncio.sleep(self._poll_s)
        return event

    @property
    def _is_empty(self) -> bool:
        return self._given == self._rows.num_rows

    def _take(self) -> Event | None:
        if self._closed.is_set() or self._is_empty:
            return None
        event = next(self._ready, None)
        if event is None:
            self._ready = iter(table_to_events(self._rows.slice(self._given, _PIECE_ROWS)))
            event = next(self._ready)
        self._given += 1
        return event

    def _fill(self) -> bool:
        """Get more, if there is; False when there will be none. A call that was given up by its
        caller ends in its thread, and what it read is there for the next."""
        with self._reading:
            if self._closed.is_set():
                return False
            if not self._is_empty:
                return True
            living = self._is_living()  # before the last look
            while self._is_empty:
                before, rows = self._tail.cursor, self._tail.read()
                if rows is None:
                    return living
                self._before, self._given = before, 0
                self._rows = _filtered(rows, self._filters)
                self._ready = iter(())
            return True

    def _is_living(self) -> bool:
        if self._lives():
            self._start_by = None
            return True
        return self._start_by is not None and time.monotonic() < self._start_by


def _is_held(paths: SweepPaths) -> bool:
    """Whether a driver runs the sweep, or a recorder writes its events."""
    return is_locked(paths.lock) or is_locked(wal_folder(paths.events) / "lock")


def _filtered(rows: pa.Table, filters: dict[str, str | None]) -> pa.Table:
    for column, value in filters.items():
        if value is not None:
            rows = rows.filter(pc.field(column) == value)
    return rows
