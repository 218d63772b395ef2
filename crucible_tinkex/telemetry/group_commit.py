"""A `Recorder` in a thread of its own, for many senders at once.

Guarantees: the calls of one recorder never overlap; batches that arrive while others are being made
durable are written together, with one fsync; a batch that is refused fails alone. One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.recorder import Changes, Recorder

T = TypeVar("T")
Stored = int | ValueError
"""How many events of a batch were new, or why the batch was refused."""


class GroupCommit:
    """As `Recorder`, for coroutines. The first call opens it, and raises what that raises; it may
    be tried again."""

    def __init__(self, make: Callable[[], Recorder]) -> None:
        self._make = make
        self._recorder: Recorder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="telemetry")
        self._gathering: list[Sequence[Event]] | None = None
        self._commit: asyncio.Task[list[Stored]] | None = None

    async def record(self, events: Sequence[Event]) -> int:
        """Returns when the events are durable."""
        if self._gathering is None:
            self._gathering = []
            self._commit = asyncio.create_task(self._write(self._gathering, self._commit))
        place, commit = len(self._gathering), self._commit
        assert commit is not None
        self._gathering.append(events)
        stored = (await asyncio.shield(commit))[place]
        if isinstance(stored, ValueError):
            raise stored
        return stored

    async def changes(self, since: int) -> Changes:
        return await self._call(lambda: self._open().changes(since))

    async def close(self) -> None:
        await self._call(self._close)
        self._thread.shutdown()

    async def _write(
        self, batches: list[Sequence[Event]], before: asyncio.Task[list[Stored]] | None
    ) -> list[Stored]:
        if before is not None:
            await asyncio.wait([before])
        self._gathering = None  # from here on others gather for the next
        return await self._call(lambda: self._record(batches))

    def _record(self, batches: Sequence[Sequence[Event]]) -> list[Stored]:
        try:
            return list(self._open().record_batches(batches))
        except ValueError as e:
            if len(batches) == 1:
                return [e]
            return [stored for batch in batches for stored in self._record([batch])]

    def _open(self) -> Recorder:
        if self._recorder is None:
            self._recorder = self._make()
        return self._recorder

    def _close(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
