"""Room for one more model on a service that keeps those of ended sessions until they are unloaded.

Where a session cannot be finished, its models keep their places. They are not unloaded at once:
some services forget a model's checkpoints with it (TuFT). They are left behind, and unloaded, the
oldest first, when the service has no room for another; from then on, as soon as a session of this
process ends. A service that says that it is full (SkyRL) keeps the checkpoints, so that there the
models of interrupted sessions go, too. Other processes are told by way of the pool (`make`). A
service that is full where others would say 429 is waited for: a place becomes free when some model
is unloaded or its session ends, so the refusal is no fault of the trial that asked.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.watch import PAUSED_CAPACITY, QueueState, Watch
from crucible_tinkex.errors import OperationFailedError, RequestRejectedError, ServiceError

T = TypeVar("T")

_SAYS_FULL = re.compile(r"maximum number of (lora )?(adapters|models)", re.IGNORECASE)
"""SkyRL: HTTP 400, "Maximum number of LoRA adapters (8) reached"."""
_FIRST_S, _LONGEST_S = 1.0, 30.0


@dataclass
class Room:
    """What this process knows of the places of one service."""

    left: deque[str] = field(default_factory=deque)
    """Models of ended sessions that are still loaded, the oldest first."""
    interrupted: deque[str] = field(default_factory=deque)
    """The same of sessions whose trials are to go on: unloaded last, and on no guess."""
    is_short: bool = False
    """It was full once."""

    async def make(self, unload: Callable[[str], Awaitable[object]]) -> None:
        """The service is full: unload all that is left, now and from now on."""
        self.is_short = True
        models = [*self.left, *self.interrupted]
        self.left.clear()
        self.interrupted.clear()
        await asyncio.gather(*map(unload, models))

    async def when_there_is(
        self,
        create: Callable[[], Awaitable[T]],
        unload: Callable[[str], Awaitable[object]],
        settings: ClientSettings,
        watch: Watch,
    ) -> T:
        """What `create` makes, as soon as the service has room, within `policy.queue_s`. Each call
        of `create` must be a new operation. Trouble that may be want of room is tried with one
        model less, once: a service that is only out of order is to keep the others."""
        clock, wait_s = settings.clock, _FIRST_S
        guessed = False
        give_up_at = clock.monotonic() + settings.policy.queue_s
        while True:
            try:
                return await create()
            except (RequestRejectedError, OperationFailedError) as refusal:
                full = is_full(refusal)
                self.is_short = self.is_short or full
                spare = self.left or (self.interrupted if full else None)
                if spare and (full or (_is_services_trouble(refusal) and not guessed)):
                    guessed = guessed or not full
                    await unload(spare.popleft())
                    continue
                if not full or clock.monotonic() >= give_up_at:
                    raise
                state = QueueState(PAUSED_CAPACITY, refusal.message, for_place=True)
                with watch.waiting(create, state):
                    await clock.sleep(wait_s * (1 + clock.chance()) / 2)
            wait_s = min(2 * wait_s, _LONGEST_S)


_rooms: dict[tuple[Address, ApiKey], Room] = {}


def room_at(address: Address, key: ApiKey) -> Room:
    """That of all sessions with this key, in this process."""
    return _rooms.setdefault((address, key), Room())


def is_full(error: ServiceError) -> bool:
    return _SAYS_FULL.search(error.message) is not None


def _is_services_trouble(error: ServiceError) -> bool:
    """It may be full, and say so in words of its own."""
    return error.category == "server" or (error.status or 0) >= 500
