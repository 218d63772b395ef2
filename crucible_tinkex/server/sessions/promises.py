"""Promises: an id at once, the outcome when the engine has it, retrievable more than once.

Guarantees: an outcome is kept at least `KEEP_S` after it came, retrieved or not, unless memory runs
over `MAX_BYTES`: then the oldest retrieved ones go first. One that nobody retrieved is kept
`KEEP_UNREAD_S`. A dropped id answers 410, one that never was 404; beyond the limits new work is
refused with 429 before anything is kept of it. All methods belong to the event loop's thread; the
engine's answers come back to it through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.server.operations import (
    Engine,
    ForwardOutput,
    Operation,
    Outcome,
    SampleOutput,
    gone,
    refused,
)
from crucible_tinkex.server.sessions.limits import Limits

KEEP_S = 600.0
KEEP_UNREAD_S = 3600.0
MAX_BYTES = 512 * 1024 * 1024
_SMALL_BYTES = 500

Report = Callable[[Outcome], None]


@dataclass(slots=True)
class Promise:
    """`outcome` None: not there yet."""

    request_id: str
    request_bytes: int = 0
    outcome: Outcome | None = None
    finished_s: float = 0.0
    size_bytes: int = 0
    waiter: asyncio.Future[None] | None = None


class Promises:
    def __init__(
        self, engine: Engine, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.closed = False
        """Whether the server is ending."""
        self._clock = clock
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._open: dict[str, Promise] = {}
        self._open_bytes = 0
        self._unread: OrderedDict[str, Promise] = OrderedDict()
        self._read: OrderedDict[str, Promise] = OrderedDict()
        self._bytes = 0

    # --- work ----------------------------------------------------------------------------------

    def check_room(self, size_bytes: int) -> None:
        """Raises with status 429 if too much is under way."""
        if len(self._open) >= self.limits.max_open:
            raise self.busy(f"{len(self._open)} requests are under way")
        if self._open_bytes + size_bytes > self.limits.max_open_bytes:
            raise self.busy(f"requests of {self._open_bytes} bytes are under way")

    def busy(self, what: str) -> RequestRejectedError:
        return RequestRejectedError(
            f"the server is full: {what}; try again later",
            status=429,
            category="server",
            retry_after_s=float(self.limits.retry_after_s),
        )

    def submit(
        self,
        operation: Operation,
        request_id: str | None = None,
        then: Report | None = None,
    ) -> str:
        """Hand over now; `then` is called in the event loop after the promise is resolved."""
        request_id = request_id or self.create()
        loop = asyncio.get_running_loop()

        def finish(outcome: Outcome) -> None:
            self.resolve(request_id, outcome)
            if then is not None:
                then(outcome)

        def report(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server is going down
                loop.call_soon_threadsafe(finish, outcome)

        self.engine.submit(operation, report)
        return request_id

    # --- promises ------------------------------------------------------------------------------

    def create(self, request_bytes: int = 0) -> str:
        self._count += 1
        request_id = f"{self._prefix}-{self._count}"
        self._open[request_id] = Promise(request_id, request_bytes)
        self._open_bytes += request_bytes
        self._sweep()
        return request_id

    def is_open(self, request_id: str) -> bool:
        return request_id in self._open

    def resolve(self, request_id: str, outcome: Outcome) -> None:
        """Only the first outcome counts."""
        promise = self._open.pop(request_id, None)
        if promise is None:
            return
        self._open_bytes -= promise.request_bytes
        promise.outcome = outcome
        promise.finished_s = self._clock()
        promise.size_bytes = _size_bytes(outcome)
        self._bytes += promise.size_bytes
        self._unread[request_id] = promise
        _wake(promise)

    async def wait(self, request_id: str, timeout_s: float) -> Promise:
        """The promise, as soon as it is finished or after `timeout_s`."""
        promise = self._open.get(request_id)
        if promise is not None and timeout_s > 0 and not self.closed:
            if promise.waiter is None:
                promise.waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait((promise.waiter,), timeout=timeout_s)
        return self._open.get(request_id) or self._take(request_id)

    def _take(self, request_id: str) -> Promise:
        promise = self._unread.pop(request_id, None) or self._read.get(request_id)
        if promise is None:
            prefix, _, number = request_id.partition("-")
            if prefix == self._prefix and number.isdecimal() and 0 < int(number) <= self._count:
                raise gone(f"the result of {request_id} is no longer kept")
            raise refused(f"there is no request {request_id}", 404)
        return self._read.setdefault(request_id, promise)

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
        self.closed = True
        for promise in self._open.values():
            _wake(promise)


def digest(body: bytes) -> bytes:
    """Tells a repeat of a request from another one."""
    return hashlib.blake2b(body, digest_size=16).digest()


def _wake(promise: Promise) -> None:
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
