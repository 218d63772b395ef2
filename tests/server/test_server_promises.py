"""The order of requests and the life of promises, without an engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from crucible_tinkex.errors import RequestRejectedError, SessionLostError
from crucible_tinkex.server.operations import (
    BaseInfo,
    Done,
    Operation,
    Outcome,
    StepOutput,
    refused,
)
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.ordering import Sequence
from crucible_tinkex.server.sessions.promises import KEEP_S, KEEP_UNREAD_S, Promises


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3, 4))))
def test_requests_run_by_number_whatever_the_order_of_arrival(order: tuple[int, ...]) -> None:
    sequence, ran = Sequence(), []
    for n in order:
        sequence.admit(n, b"%d" % n, f"r{n}", lambda n=n: ran.append(n))
    assert ran == [1, 2, 3, 4]


def test_a_repeat_gets_the_first_promise_and_runs_once() -> None:
    sequence, ran = Sequence(), []
    assert sequence.repeated(2, b"x") is None
    sequence.admit(2, b"x", "r2", lambda: ran.append(2))
    assert sequence.repeated(2, b"x") == "r2"
    sequence.admit(1, b"y", "r1", lambda: ran.append(1))
    assert (sequence.repeated(2, b"x"), sequence.repeated(1, b"y")) == ("r2", "r1")
    assert ran == [1, 2]
    with pytest.raises(RequestRejectedError, match="another request"):
        sequence.repeated(1, b"z")
    with pytest.raises(RequestRejectedError, match="not kept"):
        sequence.repeated(0, b"z")


def test_a_refused_request_does_not_hold_the_next() -> None:
    sequence, ran = Sequence(), []
    sequence.admit(2, b"x", "r2", lambda: ran.append(2))
    sequence.admit(1, b"bad", refused("no such token"))
    assert ran == [2]
    assert sequence.following() == 3
    for body in (b"bad", b"the same in JSON"):
        with pytest.raises(RequestRejectedError, match="no such token"):
            sequence.repeated(1, body)


class NoEngine:
    """It is never asked."""

    base = BaseInfo("none", "none", 1, 1)

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_results_come_more_than_once_and_expire_in_time() -> None:
    clock = Clock()
    promises = Promises(NoEngine(), Limits(), clock=clock)
    first, second = promises.create(), promises.create()
    promises.resolve(first, StepOutput({"a": 1.0}))
    promises.resolve(second, Done())
    for _ in range(2):
        assert (await promises.wait(first, 0)).outcome == StepOutput({"a": 1.0})
    clock.now = KEEP_S - 1
    promises.create()
    assert (await promises.wait(first, 0)).outcome is not None
    clock.now = KEEP_S + 1
    promises.create()
    with pytest.raises(SessionLostError) as lost:
        await promises.wait(first, 0)
    assert lost.value.status == 410
    assert (await promises.wait(second, 0)).outcome == Done()  # nobody had read it
    clock.now = KEEP_UNREAD_S + 1
    promises.create()
    with pytest.raises(SessionLostError):
        await promises.wait(second, 0)
    with pytest.raises(RequestRejectedError) as unknown:
        await promises.wait("nonsense", 0)
    assert unknown.value.status == 404


async def test_all_waiters_wake_up() -> None:
    promises = Promises(NoEngine(), Limits())
    request_id = promises.create()
    assert (await promises.wait(request_id, 0.01)).outcome is None
    waiting = [asyncio.create_task(promises.wait(request_id, 30)) for _ in range(3)]
    await asyncio.sleep(0.01)
    promises.resolve(request_id, Done())
    assert [p.outcome for p in await asyncio.gather(*waiting)] == [Done()] * 3
