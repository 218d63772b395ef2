"""What a host tells: at once how long the service asked to wait, else from time to time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from crucible_tinkex.client.http.watch import Observer, QueueState
from crucible_tinkex.runtime.actors.pulse import Pulse
from crucible_tinkex.runtime.ports import Beat
from crucible_tinkex.testing.clock import run_virtual


class Hears(Observer):
    def __init__(self) -> None:
        self.states: list[QueueState] = []

    def on_queue_state(self, state: QueueState) -> None:
        self.states.append(state)


def test_a_wait_is_told_at_once_and_passed_on() -> None:
    async def test() -> None:
        pulse, hears, sessions = Pulse(), Hears(), SimpleNamespace(tokens=7, waiting={})
        made: list[Observer] = []
        connect: Any = made.append
        pulse.watching(connect)(hears)
        host: Any = sessions
        assert await pulse.beat(host, 5.0, 0.0) == Beat(0.0, 7)
        assert asyncio.get_running_loop().time() == 5.0
        beat = asyncio.ensure_future(pulse.beat(host, 5.0, 0.0))
        await asyncio.sleep(1)
        full = QueueState("paused_rate_limit", "slow down", 1e9)
        made[0].on_queue_state(full)
        assert await beat == Beat(1e9, 7)
        assert asyncio.get_running_loop().time() == 6.0, "at once"
        assert hears.states == [full]
        assert await pulse.beat(host, 5.0, 1e9) == Beat(1e9, 7)
        assert asyncio.get_running_loop().time() == 11.0, "what is known is not news"

    run_virtual(test())
