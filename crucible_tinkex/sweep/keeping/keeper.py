"""Keeps of a sweep's checkpoints what its experiment asks for, beside the training.

Guarantees: it acts only on what is in the journal; a service that cannot delete just now costs a
warning and never the sweep, and what is left is done at the next occasion, or by the next run; the
work does not grow with the square of the trials, because it looks again only when an eighth of them
has saved something.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from crucible_tinkex.errors import ServiceError
from crucible_tinkex.registry import ControlPort, SweepState
from crucible_tinkex.sweep.keeping.decisions import Models, decided, section_of
from crucible_tinkex.sweep.ports import CheckpointStore

SHARE, LEAST = 8, 8
"""It looks when an eighth of the trials, and at least so many, have saved since the last time."""
AT_ONCE = 4

log = logging.getLogger(__name__)


class Keeper:
    """Of one run. `models` reads which checkpoints are registered as models; it may block."""

    def __init__(
        self,
        registry: ControlPort,
        store: CheckpointStore,
        models: Callable[[], Models],
        *,
        run_id: str,
        clock: Callable[[], float] = time.time,
        tell: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        """`tell` hears of every deletion and expiry that the service has done."""
        self._registry = registry
        self._store = store
        self._models = models
        self._run_id = run_id
        self._clock = clock
        self._tell = tell
        self._ops = 0
        self._looked_at: int | None = None
        self._work: asyncio.Task[None] | None = None
        self._warned = False

    async def look(self, state: SweepState) -> None:
        """While the sweep goes on: decide if it is time, and have it done meanwhile. The decisions
        are in the journal when this returns; fold them before anything else is decided."""
        new = state.saved - (self._looked_at or 0)
        is_time = self._looked_at is None or new >= max(LEAST, len(state.trials) // SHARE)
        busy = self._work is not None and not self._work.done()
        if is_time and not busy and state.saved:
            if self._work is not None:
                self._work.result()  # raises what a registry that failed said
            self._work = asyncio.create_task(self._act(await self._decide(state)))

    async def finish(self, state: SweepState, given_up: asyncio.Event) -> None:
        """At the end: the same, waiting until it is done, or until it is given up."""
        if self._work is not None:
            await self._unless(self._work, given_up)
        if state.saved and not given_up.is_set():
            await self._unless(
                asyncio.ensure_future(self._act(await self._decide(state))), given_up
            )

    async def close(self) -> None:
        """Leave what is not done to the next run."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self._store.close()

    async def _decide(self, state: SweepState) -> list[Callable[[], Awaitable[None]]]:
        """Journal what is new; everything that is still to be done, also of earlier runs."""
        self._looked_at = state.saved
        asks = section_of(state)
        records: list[dict[str, Any]] = []
        if asks.prunes or asks.ttl_days is not None or state.expiries:
            models = await asyncio.to_thread(self._models)
            records = decided(state, models, now=self._clock())
        if records:
            await self._registry.upkeep(records, self._op())
        buried = {**state.buried}
        expiries = {path: e.at for path, e in state.expiries.items() if not e.done}
        for record in records:
            if record["type"] == "tombstone":
                buried[record["path"]] = record["trial_id"]
                expiries.pop(record["path"], None)
            else:
                expiries[record["path"]] = record["at"]
        deletions = [self._deletion(path, trial_id) for path, trial_id in buried.items()]
        return [*deletions, *(self._expiry(path, at) for path, at in expiries.items())]

    def _deletion(self, path: str, trial_id: str) -> Callable[[], Awaitable[None]]:
        async def delete() -> None:
            await self._store.delete(path)
            await self._done({"type": "deleted", "trial_id": trial_id, "path": path})

        return delete

    def _expiry(self, path: str, at: float | None) -> Callable[[], Awaitable[None]]:
        async def expire() -> None:
            left = None if at is None else max(1, round(at - self._clock()))
            await self._store.set_ttl(path, left)
            await self._done({"type": "expiry_set", "path": path, "at": at})

        return expire

    async def _done(self, record: Mapping[str, Any]) -> None:
        await self._registry.upkeep([record], self._op())
        self._tell(record)

    async def _act(self, work: list[Callable[[], Awaitable[None]]]) -> None:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(deed: Callable[[], Awaitable[None]]) -> None:
            async with free:
                try:
                    await deed()
                except ServiceError as e:
                    self._warn(e)

        tasks = [asyncio.ensure_future(one(deed)) for deed in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _warn(self, error: ServiceError) -> None:
        if not self._warned:
            log.warning("checkpoints could not be deleted; the next run tries again: %s", error)
        self._warned = True

    @staticmethod
    async def _unless(work: asyncio.Future[None], given_up: asyncio.Event) -> None:
        """Wait for the work; cancel it when it is given up. Raises what it raised."""
        gone = asyncio.ensure_future(given_up.wait())
        both: set[asyncio.Future[Any]] = {work, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
        if not work.cancelled() and work.done():
            work.result()

    def _op(self) -> str:
        self._ops += 1
        return f"{self._run_id}:keep:{self._ops}"
