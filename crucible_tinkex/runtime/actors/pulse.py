"""What a host tells in its heartbeats: how long the service asked its sessions to wait, how
much they have trained, and which of them wait for a place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from crucible_tinkex.client.http.watch import Observer, Observers, QueueState
from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.runtime.ports import Beat
from crucible_tinkex.training.host import SessionHost


class Pulse(Observer):
    """Of the sessions of one run in one process; hears what their services wait for."""

    def __init__(self) -> None:
        self._held_until = 0.0
        self._held = asyncio.Event()

    def watching(
        self, connect: Callable[[Observer], TrainingService]
    ) -> Callable[[Observer], TrainingService]:
        """`connect`, so that what its services wait for is heard here."""
        return lambda observer: connect(Observers(self, observer))

    def on_queue_state(self, state: QueueState) -> None:
        until = state.resume_at or 0.0
        if until > self._held_until:
            self._held_until = until
            self._held.set()

    async def beat(self, sessions: SessionHost, after_s: float, known: float) -> Beat:
        """See `ports.Host.heartbeat`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                while self._held_until <= known:
                    self._held.clear()
                    await self._held.wait()
        waiting = sessions.waiting
        is_full = any(state.for_place for state in waiting.values())
        return Beat(self._held_until, sessions.tokens, frozenset(waiting), is_full)
