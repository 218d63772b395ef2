"""Operations on their way to the engine, and outcomes on their way back as promises.

Guarantees: beyond the limits new work is refused with 429 before anything is kept of it. Owned by
the event loop's thread; the engine's answers come back to it through `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import suppress

from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.server.operations import Engine, Operation, Outcome
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.promises import Promises

Report = Callable[[Outcome], None]


class Dispatch:
    def __init__(
        self, engine: Engine, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.promises = Promises(clock=clock)

    def check_room(self, size_bytes: int) -> None:
        """Raises with status 429 if too much is under way."""
        limits, promises = self.limits, self.promises
        if promises.open_count >= limits.max_open:
            raise self.busy(f"{promises.open_count} requests are under way")
        if promises.open_bytes + size_bytes > limits.max_open_bytes:
            raise self.busy(f"requests of {promises.open_bytes} bytes are under way")

    def busy(self, what: str) -> RequestRejectedError:
        return RequestRejectedError(
            f"the server is full: {what}; try again later",
            status=429,
            category="server",
            retry_after_s=float(self.limits.retry_after_s),
        )

    def submit(self, operation: Operation, size_bytes: int = 0, then: Report | None = None) -> str:
        """Hand over now; `then` is called in the event loop after the promise is resolved."""
        request_id = self.promises.create(size_bytes)
        self.engine.submit(operation, self.reporter(request_id, then))
        return request_id

    def reporter(self, request_id: str, then: Report | None = None) -> Report:
        loop = asyncio.get_running_loop()

        def finish(outcome: Outcome) -> None:
            self.promises.resolve(request_id, outcome)
            if then is not None:
                then(outcome)

        def report(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server is going down
                loop.call_soon_threadsafe(finish, outcome)

        return report


def digest(body: bytes) -> bytes:
    """Tells a repeat of a request from another one."""
    return hashlib.blake2b(body, digest_size=16).digest()


def ignore(outcome: Outcome) -> None:
    pass
