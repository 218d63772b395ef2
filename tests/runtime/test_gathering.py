"""Calls that travel together: at once when nothing is under way, each with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.runtime.actors.gathering import Call, Gathering


class Actor:
    """Answers a batch when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Call]] = []
        self.let = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def send(self, calls: Sequence[Call]) -> list[Any]:
        self.batches.append(list(calls))
        await self.let.acquire()
        if self.error:
            raise self.error
        return [ConfigError("no") if name == "refused" else args for name, args in calls]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_call_leaves_at_once_and_the_next_ones_together() -> None:
    actor = Actor()
    gathering = Gathering(actor.send)
    calls = [asyncio.create_task(gathering.call("a", 0))]
    await turns()
    assert actor.batches == [[("a", (0,))]]
    calls += [asyncio.create_task(gathering.call("a", n)) for n in (1, 2, 3)]
    await turns()
    assert len(actor.batches) == 1
    actor.let.release()
    actor.let.release()
    assert await asyncio.gather(*calls) == [(0,), (1,), (2,), (3,)]
    assert [len(batch) for batch in actor.batches] == [1, 3]


async def test_each_call_has_its_own_error() -> None:
    actor = Actor()
    gathering = Gathering(actor.send)
    for _ in range(9):
        actor.let.release()
    calls = [gathering.call(name, name) for name in ("a", "refused", "b")]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert found[0::2] == [("a",), ("b",)]
    assert isinstance(found[1], ConfigError)
    actor.error = StorageError("full")
    found = await asyncio.gather(*(gathering.call("a", n) for n in "xy"), return_exceptions=True)
    assert [str(e) for e in found] == ["full", "full"]
    assert found[0] is not found[1], "each trial adds where it was to its own error"
    actor.error = None
    assert await gathering.call("a", 1) == (1,), "an error ends nothing"


async def test_a_cancelled_call_leaves_the_others_alone() -> None:
    actor = Actor()
    gathering = Gathering(actor.send)
    first, second, third = (asyncio.create_task(gathering.call("a", n)) for n in range(3))
    await turns()
    second.cancel()
    actor.let.release()
    assert await first == (0,)
    assert await third == (2,)
    with pytest.raises(asyncio.CancelledError):
        await second
