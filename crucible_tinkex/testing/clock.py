"""An event loop with a virtual clock: waiting costs nothing, so hours of a sweep pass in a test.

Guarantees: when no callback is ready, the loop's time jumps to the next timer, so `asyncio.sleep`,
`timeout`, `wait_for` and `call_later` behave as ever and take no real time; a program in which
everything waits and nothing is scheduled raises `DeadlockError` instead of hanging. It is not for
code that waits for threads, processes or sockets: the clock would run away from them. Code that
reads `time.time()` itself takes a clock as an argument.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


THREAD_S = 5.0
"""Real seconds that a worker thread may take while everything else waits."""
MOST_S = 100_000.0


class DeadlockError(RuntimeError):
    """Every task waits, and no timer will ever wake one."""


class _Jump(selectors.SelectSelector):
    """Instead of sleeping until the next timer, moves the clock there."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            if ready := super().select(THREAD_S):  # a worker thread may still answer
                return ready
            raise DeadlockError("all tasks wait and nothing is scheduled")
        self.now += max(timeout, 0.0)
        if self.now > MOST_S:
            raise DeadlockError(f"nothing came to an end within {MOST_S:.0f} s of virtual time")
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """The loop; its `time()` starts at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)
