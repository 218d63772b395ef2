"""The sending end of telemetry: takes events from a training loop, hands batches to the event log.

`emit` never waits and never fails because of the receiver; one background task delivers batches in
order, one at a time, and repeats a batch until it is acknowledged (the receiver drops what it has
already). A receiver that stays away costs memory up to `max_pending` events; beyond that the oldest
waiting events are dropped, because training must not stop for telemetry. A loss is never silent: it
is counted, a `request` event `sys/telemetry_dropped` says how many as soon as delivery works again,
and every `flush` from then on raises. So commit a checkpoint only after `flush` returned; a session
that resumes from the last one with a new sink emits again what was lost.

One event loop, one thread. Several sessions may share a sink; a loss then concerns them all. Not a
store: what is not acknowledged dies with the process.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from crucible_tinkex.errors import CrucibleError, StorageError
from crucible_tinkex.events import Event, EventWriter

DROPPED = "sys/telemetry_dropped"
MOST_REFUSALS = 8
"""By the receiver's own storage, one after another: 5 seconds. A process that is away comes back;
a disk that is full for longer waits for a person."""


class EventDeliveryError(StorageError):
    """Events were lost, or not acknowledged in time; treat what they measured as not recorded."""


class BufferedSink:
    """An `EventSink` that delivers in the background; see the module for its guarantees.

    `deliver` takes a batch and returns when it is durable. `ConnectionError`, `TimeoutError` and
    this package's own errors mean "again later"; any other exception ends delivery and is raised,
    as `EventDeliveryError`, by every `flush`. So is a `StorageError`, as long as it stays.
    """

    def __init__(
        self,
        writer: EventWriter,
        deliver: Callable[[list[Event]], Awaitable[object]],
        *,
        max_batch: int = 200,
        max_delay_s: float = 0.5,
        max_pending: int = 50_000,
        flush_timeout_s: float = 60.0,
        retry_delay_s: float = 0.05,
        max_retry_delay_s: float = 5.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._writer = writer
        self._deliver = deliver
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_pending = max_pending
        self._flush_timeout_s = flush_timeout_s
        self._retry_delay_s = retry_delay_s
        self._max_retry_delay_s = max_retry_delay_s
        self._sleep = sleep
        self._jitter = jitter
        self._pending: deque[Event] = deque()
        self._in_flight: list[Event] = []
        self._emitted = 0
        self._settled = 0  # the first so many emitted events were acknowledged or dropped
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._work = asyncio.Event()  # something is pending
        self._hurry = asyncio.Event()  # a full batch, or somebody waits for it
        self._task: asyncio.Task[None] | None = None
        self._last_error: BaseException | None = None
        self._refusals = 0
        self._unreported: list[Event] = []  # the first and last event lost since the last report
        self._unreported_count = 0
        self._closed = False
        self.dropped = 0
        """Events lost since the sink was made."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Take one event; the fields are those of `EventWriter.event`. Delivery needs a loop."""
        if self._closed:
            raise RuntimeError("the sink is closed")
        self._put(self._writer.event(kind, **fields))
        if self._task is None:
            self._start()

    async def flush(self) -> None:
        """Return when every event emitted so far was acknowledged.

        Raises `EventDeliveryError` if some are not after `flush_timeout_s`, or the receiver's
        storage refuses them (they stay and are still tried), if delivery ended, or if this sink
        ever dropped an event.
        """
        if self._pending or self._in_flight:
            await self._settle()
        if self.dropped:
            raise EventDeliveryError(
                f"{self.dropped} telemetry events were lost: more than {self._max_pending} waited "
                "for an event log that was away"
            ) from self._last_error

    async def aclose(self) -> None:
        """Flush, then end the background task whatever the flush said. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await self.flush()
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def _settle(self) -> None:
        self._start()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._emitted, waiter)
        self._waiters.append(entry)
        self._hurry.set()
        self._wake()
        try:
            async with asyncio.timeout(self._flush_timeout_s):
                await waiter
        except TimeoutError as e:
            raise EventDeliveryError(
                f"{len(self._pending) + len(self._in_flight)} telemetry events were not "
                f"acknowledged within {self._flush_timeout_s:g} s: {self._last_error}"
            ) from (self._last_error or e)
        finally:
            self._waiters.remove(entry)

    def _put(self, event: Event) -> None:
        self._pending.append(event)
        self._emitted += 1
        waiting = len(self._pending)
        if waiting + len(self._in_flight) > self._max_pending and waiting > 1:
            self._drop_oldest()
        if waiting == 1:
            self._work.set()
        elif waiting >= self._max_batch:
            self._hurry.set()

    def _drop_oldest(self) -> None:
        event = self._pending.popleft()
        self.dropped += 1
        self._unreported_count += 1
        self._unreported[1:] = [event]

    def _report_drops(self) -> None:
        """Leave a mark in the log where events are missing."""
        if not self._unreported:
            return
        first, last = self._unreported[0], self._unreported[-1]
        count = self._unreported_count
        self._unreported, self._unreported_count = [], 0
        report = self._writer.event(
            "request",
            trial_id=last.trial_id,
            attempt=last.attempt,
            step=last.step,
            name=DROPPED,
            value=float(count),
            extra={"first_seq": first.seq, "last_seq": last.seq},
        )
        self._put(report)

    def _start(self) -> None:
        if self._task is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # emitted before the loop runs: the first call inside it starts delivery
            self._task = loop.create_task(self._run(), name="telemetry sender")
            self._task.add_done_callback(lambda _: self._wake())

    async def _run(self) -> None:
        while True:
            if not self._pending:
                self._work.clear()
                await self._work.wait()
            await self._gather()
            self._settled = self._emitted - len(self._pending)
            count = min(len(self._pending), self._max_batch)
            self._in_flight = [self._pending.popleft() for _ in range(count)]
            await self._deliver_until_acknowledged()
            self._in_flight = []
            self._settled = self._emitted - len(self._pending)
            self._wake()
            self._report_drops()

    async def _gather(self) -> None:
        """Give a batch that is not full yet some time, unless somebody waits for it."""
        if len(self._pending) >= self._max_batch or self._waiters:
            return
        self._hurry.clear()
        try:
            async with asyncio.timeout(self._max_delay_s):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _deliver_until_acknowledged(self) -> None:
        delay_s = self._retry_delay_s
        while True:
            try:
                await self._deliver(list(self._in_flight))
            except (ConnectionError, TimeoutError, CrucibleError) as e:
                self._last_error = e
                self._refusals = self._refusals + 1 if isinstance(e, StorageError) else 0
                self._wake()
            else:
                self._refusals = 0
                return
            await self._sleep(delay_s * (0.5 + 0.5 * self._jitter()))
            delay_s = min(2 * delay_s, self._max_retry_delay_s)

    def _wake(self) -> None:
        """Release the flushes that need not wait any longer."""
        ended = self._task is not None and self._task.done()
        for target, waiter in self._waiters:
            if waiter.done():
                continue
            if self._settled >= target:
                waiter.set_result(None)
            elif ended:
                waiter.set_exception(self._end_error())
            elif self._refusals >= MOST_REFUSALS:
                waiter.set_exception(self._refused())

    def _refused(self) -> EventDeliveryError:
        count = len(self._pending) + len(self._in_flight)
        error = EventDeliveryError(
            f"{count} telemetry events could not be stored: {self._last_error}"
        )
        error.__cause__ = self._last_error
        return error

    def _end_error(self) -> EventDeliveryError:
        cause = None
        if self._task is not None and not self._task.cancelled():
            cause = self._task.exception()
        error = EventDeliveryError(f"delivery of telemetry ended: {cause!r}")
        error.__cause__ = cause
        return error
