"""Turns are given in order, are never lost to a cancelled waiter, and the bound never closes."""

from __future__ import annotations

import asyncio

from scripted_service import Recorder, VirtualTime

from crucible_tinkex.client.http.pace import FEWEST, Pace
from crucible_tinkex.client.http.watch import ACTIVE, QueueState, Watch


async def _waiting(pace: Pace, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(pace.enter()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_turns_come_in_order() -> None:
    pace = Pace(VirtualTime().clock, most=2)
    first = await _waiting(pace, 4)
    assert [t.done() for t in first] == [True, True, False, False]
    pace.leave()
    late = await _waiting(pace, 1)
    assert [t.done() for t in (*first, *late)] == [True, True, True, False, False]
    pace.leave()
    await asyncio.sleep(0)
    assert first[3].done() and not late[0].done()
    late[0].cancel()


async def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    pace = Pace(VirtualTime().clock, most=1)
    running, cancelled, next_one = await _waiting(pace, 3)
    assert running.done()
    pace.leave()  # hands the turn to the second, which is cancelled before it runs
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await asyncio.wait_for(next_one, 1)


async def test_the_bound_never_closes_and_comes_back() -> None:
    time = VirtualTime()
    pace = Pace(time.clock, most=8)
    for _ in range(10):
        pace.back_off(1.0, "slow")
        await pace.resumed()
    assert pace.bound == FEWEST
    for _ in range(40):
        pace.went_well()
    assert pace.bound == 8


def test_a_session_waits_while_any_of_its_calls_does() -> None:
    heard = Recorder()
    watch = Watch(heard)
    full, slow = QueueState("paused_capacity", "full"), QueueState("paused_rate_limit", "slow")
    watch.waits("a", full)
    watch.waits("b", full)
    watch.waits("c", slow)
    watch.waits("c", slow)
    watch.moves("a")
    watch.waits("c", ACTIVE)
    watch.moves("b")
    watch.moves("b")
    assert heard.states == [full, slow, full, ACTIVE]
