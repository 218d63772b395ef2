"""When the calls of a key may be sent, and how many at a time: shared by all sessions of a process.

When the service asks one call to slow down, all of them wait, and the bound on the calls in flight
is halved, once per back-off; every answer without such a request raises it again by 1 / bound.
This is AIMD, as TCP does it (Chiu and Jain, 1989, "Analysis of the increase and decrease algorithms
for congestion avoidance in computer networks"). Calls that wait for a turn get it in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum

from crucible_tinkex.client.http.retry import Clock
from crucible_tinkex.client.http.watch import ACTIVE, PAUSED_RATE_LIMIT, QueueState

FEWEST = 2


class Lane(Enum):
    """How a call stands to the back-off of its key."""

    WORK = "work"
    """It waits with all others, and a refusal of it makes all others wait."""
    ADMISSION = "admission"
    """It waits with all others, but a refusal concerns only itself: the service has no room for
    one more model or session, or will not list them now, and slowing down the training under way
    would help nobody."""
    VITAL = "vital"
    """It waits for nobody: a session without heartbeats would be lost."""


_RESUME_SPREAD = 0.1
_LONGEST_SPREAD_S = 1.0


class Pace:
    """One per transport. `most` bounds the calls in flight while the service never complains."""

    def __init__(self, clock: Clock, *, most: int) -> None:
        self._clock = clock
        self._most = float(most)
        self._bound = float(most)
        self._in_flight = 0
        self._turns: deque[asyncio.Future[None]] = deque()
        self._resume_at = float("-inf")
        self.state = ACTIVE
        """What those who wait out the back-off wait for."""

    @property
    def bound(self) -> int:
        """Calls that may be in flight now."""
        return int(self._bound)

    @property
    def wait_s(self) -> float:
        """What is left of the back-off; zero or less when there is none."""
        return self._resume_at - self._clock.monotonic()

    def back_off(self, wait_s: float, reason: str) -> None:
        """Nothing is sent for `wait_s` from now, and less at a time afterwards."""
        if self.wait_s <= 0:
            self._bound = max(FEWEST, min(self._bound, self._in_flight) / 2)
        self.hold(wait_s, reason)

    def hold(self, wait_s: float, reason: str) -> None:
        """Nothing is sent for `wait_s` from now; no call here was refused for it."""
        if wait_s > self.wait_s:
            self._resume_at = self._clock.monotonic() + wait_s
            resume_at = round(self._clock.wall() + wait_s, 1)
            self.state = QueueState(PAUSED_RATE_LIMIT, reason, resume_at)

    def went_well(self) -> None:
        """An answer without a complaint."""
        if self._bound < self._most:
            self._bound = min(self._most, self._bound + 1 / self._bound)

    async def resumed(self) -> None:
        """Wait out the back-off, each caller a little differently."""
        while (wait_s := self.wait_s) > 0:
            spread_s = min(wait_s * _RESUME_SPREAD, _LONGEST_SPREAD_S) * self._clock.chance()
            await self._clock.sleep(wait_s + spread_s)

    async def enter(self) -> None:
        """Wait for a turn; whoever got one must `leave`."""
        if not self._turns and self._in_flight < self.bound:
            self._in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self._in_flight -= 1
        while self._turns and self._in_flight < self.bound:
            turn = self._turns.popleft()
            if not turn.done():
                self._in_flight += 1
                turn.set_result(None)
