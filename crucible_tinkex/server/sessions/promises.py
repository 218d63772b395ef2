"""Promises: an id at once, the outcome when it comes, retrievable more than once.

Guarantees: an outcome is kept at least `KEEP_S` after it came, retrieved or not, unless memory runs
over `MAX_BYTES`: then the oldest retrieved ones go first. One that nobody retrieved is kept
`KEEP_UNREAD_S`. A dropped id answers 410, one that never was 404. All methods belong to the event
loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from crucible_tinkex.server.operations import ForwardOutput, Outcome, SampleOutput, gone, refused

KEEP_S = 600.0
KEEP_UNREAD_S = 3600.0
MAX_BYTES = 512 * 1024 * 1024
_SMALL_BYTES = 500


@dataclass(slots=True)
class Promise:
    """`outcome` None: not there yet. `paused` says why its work has not even been queued."""

    request_id: str
    request_bytes: int = 0
    paused: str | None = None
    outcome: Outcome | None = None
    finished_s: float = 0.0
    size_bytes: int = 0
    waiter: asyncio.Future[None] | None = None


class Promises:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._open: dict[str, Promise] = {}
        self._unread: OrderedDict[str, Promise] = OrderedDict()
        self._read: OrderedDict[str, Promise] = OrderedDict()
        self._bytes = 0
        self._closed = False
        self.open_bytes = 0

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def closed(self) -> bool:
        """Whether the server is ending."""
        return self._closed

    def create(self, request_bytes: int = 0) -> str:
        self._count += 1
        request_id = f"{self._prefix}-{self._count}"
        self._open[request_id] = Promise(request_id, request_bytes)
        self.open_bytes += request_bytes
        self._sweep()
        return request_id

    def pause(self, request_id: str, reason: str | None) -> None:
        """Say why its work is not queued; None: now it is."""
        promise = self._open.get(request_id)
        if promise is not None:
            promise.paused = reason

    def resolve(self, request_id: str, outcome: Outcome) -> None:
        """Only the first outcome counts."""
        promise = self._open.pop(request_id, None)
        if promise is None:
            return
        self.open_bytes -= promise.request_bytes
        promise.outcome = outcome
        promise.finished_s = self._clock()
        promise.size_bytes = _size_bytes(outcome)
        self._bytes += promise.size_bytes
        self._unread[request_id] = promise
        if promise.waiter is not None and not promise.waiter.done():
            promise.waiter.set_result(None)

    async def wait(self, request_id: str, timeout_s: float) -> Promise:
        """The promise, as soon as it is finished or after `timeout_s`."""
        promise = self._open.get(request_id)
        if promise is not None and timeout_s > 0 and not self._closed:
            if promise.waiter is None:
                promise.waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait((promise.waiter,), timeout=timeout_s)
        return (
            promise if promise is not None and promise.outcome is None else self._take(request_id)
        )

    def _take(self, request_id: str) -> Promise:
        promise = self._unread.pop(request_id, None)
        if promise is not None:
            self._read[request_id] = promise
            return promise
        promise = self._read.get(request_id)
        if promise is None:
            raise self._unknown(request_id)
        return promise

    def _unknown(self, request_id: str) -> Exception:
        prefix, _, number = request_id.partition("-")
        if prefix == self._prefix and number.isdecimal() and 0 < int(number) <= self._count:
            return gone(f"the result of {request_id} is no longer kept")
        return refused(f"there is no request {request_id}", 404)

    def _sweep(self) -> None:
        now = self._clock()
        for kept, keep_s in ((self._read, KEEP_S), (self._unread, KEEP_UNREAD_S)):
            while kept:
                oldest = next(iter(kept.values()))
                if now - oldest.finished_s < keep_s and self._bytes <= MAX_BYTES:
                    break
                del kept[oldest.request_id]
                self._bytes -= oldest.size_bytes

    def close(self) -> None:
        """Let every waiting request return."""
        self._closed = True
        for promise in self._open.values():
            if promise.waiter is not None and not promise.waiter.done():
                promise.waiter.set_result(None)


def _size_bytes(outcome: Outcome) -> int:
    if isinstance(outcome, ForwardOutput):
        return _SMALL_BYTES + 16 * sum(p.size for p in outcome.logprobs)
    if isinstance(outcome, SampleOutput):
        prompt = outcome.prompt
        numbers = sum(len(s.tokens) for s in outcome.sequences) + len(prompt.logprobs or ())
        numbers += sum(len(t or ()) for t in prompt.topk or ())
        return _SMALL_BYTES + 80 * numbers
    return _SMALL_BYTES
