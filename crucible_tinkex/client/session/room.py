"""Waiting for a service that refuses one more model because it is full, where others would say 429.

A place becomes free when some model is unloaded or its session ends, so the refusal is no fault of
the trial that asked.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.watch import PAUSED_CAPACITY, QueueState, Watch
from crucible_tinkex.errors import OperationFailedError, RequestRejectedError, ServiceError

T = TypeVar("T")

_SAYS_FULL = re.compile(r"maximum number of (lora )?(adapters|models)", re.IGNORECASE)
"""SkyRL: HTTP 400, "Maximum number of LoRA adapters (8) reached"."""
_FIRST_S, _LONGEST_S = 1.0, 30.0


async def when_there_is_room(
    create: Callable[[], Awaitable[T]], settings: ClientSettings, watch: Watch
) -> T:
    """What `create` makes, as soon as the service has room, within `policy.queue_s`. Each call of
    `create` must be a new operation."""
    clock, wait_s = settings.clock, _FIRST_S
    give_up_at = clock.monotonic() + settings.policy.queue_s
    while True:
        try:
            return await create()
        except (RequestRejectedError, OperationFailedError) as refusal:
            if not is_full(refusal) or clock.monotonic() >= give_up_at:
                raise
            with watch.waiting(create, QueueState(PAUSED_CAPACITY, refusal.message)):
                await clock.sleep(wait_s * (1 + clock.chance()) / 2)
        wait_s = min(2 * wait_s, _LONGEST_S)


def is_full(error: ServiceError) -> bool:
    return _SAYS_FULL.search(error.message) is not None
