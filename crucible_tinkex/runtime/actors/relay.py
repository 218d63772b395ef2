"""From sessions in other processes to the handlers of the driver's: the events that they are given.

These do not come from the event log, which keeps measurements: it has no operation's start, length
or failure, no call over HTTP that went well, and one row for each value of what a handler gets
whole. So the events themselves travel, where somebody has attached: a `Relay` beside the sessions
keeps them until the driver has them, a `Hearing` in the driver asks for them again and again and
calls the handlers, on the driver's loop, as the local executor does. Nobody waits for a handler:
a relay that is not emptied forgets its oldest events. What a process that was killed had not told
yet (a tenth of a second) is lost with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.telemetry.bridge.catalogue import BridgeEvent, Handler

GATHER_S = 0.1
"""Events travel together: a call of an actor costs a millisecond."""
MOST = 50_000
"""Events that wait for the driver."""
log = logging.getLogger(__name__)


class Told(NamedTuple):
    """The newest events of a relay."""

    upto: int
    """How many there were by then, also those that are not here."""
    events: Sequence[BridgeEvent]


class Relay:
    """In the process of sessions, on their loop; `tell` is a handler of their bridges."""

    def __init__(self, most: int = MOST) -> None:
        self._events: deque[BridgeEvent] = deque(maxlen=most)
        self._upto = 0
        self._some = asyncio.Event()
        self._closed = False

    def tell(self, event: BridgeEvent) -> None:
        self._events.append(event)
        self._upto += 1
        self._some.set()

    async def after(self, known: int) -> Told:
        """Those behind the first `known`, which are forgotten; waits until there are some."""
        while self._events and self._upto - len(self._events) < known:
            self._events.popleft()
        if not self._events and not self._closed:
            self._some.clear()
            await self._some.wait()
        if not self._closed:
            await asyncio.sleep(GATHER_S)
        return self.rest()

    def rest(self) -> Told:
        """Those that nobody is known to have."""
        return Told(self._upto, list(self._events))

    def close(self) -> None:
        """Nobody waits any longer."""
        self._closed = True
        self._some.set()


class Hearing:
    """In the driver: gives each event of one relay to `handler`, once and in order.

    `ask` is `Relay.after`; an error of it ends the hearing, and nothing else. Needs a running loop.
    """

    def __init__(self, ask: Callable[[int], Awaitable[Told]], handler: Handler) -> None:
        self._ask = ask
        self._handler = handler
        self._given = 0
        self._task = asyncio.create_task(self._follow(), name="events of sessions")

    def cancel(self) -> None:
        """Ask no more."""
        self._task.cancel()

    async def end(self, rest: Told) -> None:
        """Give what is left of a hearing that was cancelled."""
        await asyncio.gather(self._task, return_exceptions=True)
        await self._give(rest)

    async def _follow(self) -> None:
        try:
            while True:
                await self._give(await self._ask(self._given))
        except CrucibleError as error:
            log.warning("handlers hear no more of a worker process: %s", error.message)

    async def _give(self, told: Told) -> None:
        first = told.upto - len(told.events)
        if first > self._given:
            log.warning("%d events came faster than handlers took them", first - self._given)
            self._given = first
        for event in told.events[self._given - first :]:
            self._given += 1
            self._handler(event)
            await asyncio.sleep(0)  # the loop has other work
