"""Events of sessions elsewhere: each once, in order, the last ones too, and nobody waits."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Awaitable, Callable

import pytest

from crucible_tinkex.errors import HostLostError
from crucible_tinkex.runtime.actors.relay import GATHER_S, Hearing, Relay, Told
from crucible_tinkex.telemetry.bridge import BridgeEvent
from crucible_tinkex.testing.clock import run_virtual


def event(number: int) -> BridgeEvent:
    return BridgeEvent("optim_step_stop", {"step": number}, {"trial_id": "a"})


def tell(relay: Relay, *numbers: int) -> None:
    for number in numbers:
        relay.tell(event(number))


def steps(events: list[BridgeEvent]) -> list[int]:
    return [e.measurements["step"] for e in events]


def test_events_travel_together_and_are_kept_until_they_are_known() -> None:
    async def test() -> None:
        relay = Relay()
        waiting = asyncio.ensure_future(relay.after(0))
        await asyncio.sleep(7)
        assert not waiting.done()
        tell(relay, 1)
        await asyncio.sleep(GATHER_S / 2)
        tell(relay, 2)
        told = pickle.loads(pickle.dumps(await waiting))  # noqa: S301
        assert (told.upto, steps(told.events)) == (2, [1, 2])
        assert steps(list(relay.rest().events)) == [1, 2], "the answer may not arrive"
        tell(relay, 3)
        assert (await relay.after(0)).upto == 3
        assert steps(list((await relay.after(2)).events)) == [3]

    run_virtual(test())


def test_a_relay_that_is_closed_holds_nobody_up() -> None:
    async def test() -> None:
        relay = Relay()
        waiting = asyncio.ensure_future(relay.after(0))
        await asyncio.sleep(1)
        relay.close()
        assert await waiting == Told(0, [])
        assert await relay.after(0) == Told(0, [])
        assert asyncio.get_running_loop().time() == 1

    run_virtual(test())


def test_each_event_is_given_once_also_those_that_came_last() -> None:
    async def test() -> None:
        relay, heard = Relay(), list[BridgeEvent]()
        hearing = Hearing(relay.after, heard.append)
        tell(relay, 1, 2)
        await asyncio.sleep(1)
        tell(relay, 3)
        await asyncio.sleep(1)
        assert steps(heard) == [1, 2, 3]
        tell(relay, 4)
        hearing.cancel()
        tell(relay, 5)
        await hearing.end(relay.rest())
        assert steps(heard) == [1, 2, 3, 4, 5]

    run_virtual(test())


def test_a_hearing_that_ends_while_it_gives_goes_on_where_it_was() -> None:
    async def test() -> None:
        relay, heard = Relay(), list[BridgeEvent]()
        tell(relay, *range(1, 10))

        def handler(event: BridgeEvent) -> None:
            heard.append(event)
            if len(heard) == 4:
                hearing.cancel()

        hearing = Hearing(relay.after, handler)
        await asyncio.sleep(1)
        assert steps(heard) == [1, 2, 3, 4]
        await hearing.end(relay.rest())
        assert steps(heard) == list(range(1, 10))

    run_virtual(test())


def test_the_loop_has_its_turn_between_events() -> None:
    async def test() -> None:
        relay, order = Relay(), list[str]()
        tell(relay, 1, 2)
        asyncio.get_running_loop().call_later(GATHER_S, order.append, "other work")

        def handler(event: BridgeEvent) -> None:
            order.append("event")
            asyncio.get_running_loop().call_soon(order.append, "other work")

        hearing = Hearing(relay.after, handler)
        await asyncio.sleep(1)
        hearing.cancel()
        assert order[-4:] == ["event", "other work", "event", "other work"]

    run_virtual(test())


def test_what_comes_too_fast_is_counted_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        relay, heard = Relay(most=3), list[BridgeEvent]()
        tell(relay, 1, 2, 3, 4, 5)
        hearing = Hearing(relay.after, heard.append)
        await asyncio.sleep(1)
        hearing.cancel()
        assert steps(heard) == [3, 4, 5]

    with caplog.at_level(logging.WARNING):
        run_virtual(test())
    assert "2 events came faster" in caplog.text


def test_a_process_that_is_gone_ends_the_hearing_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        relay, heard = Relay(), list[BridgeEvent]()
        tell(relay, 1)
        asked: list[int] = []

        async def dies(known: int) -> Told:
            asked.append(known)
            if known:
                raise HostLostError("the process was killed")
            return await relay.after(known)

        ask: Callable[[int], Awaitable[Told]] = dies
        hearing = Hearing(ask, heard.append)
        await asyncio.sleep(1)
        assert (steps(heard), asked) == ([1], [0, 1])
        hearing.cancel()

    with caplog.at_level(logging.WARNING):
        run_virtual(test())
    assert "hear no more" in caplog.text and "was killed" in caplog.text
