"""Functions of the user's that raise, exit or hang: the loop goes on, the call fails by name."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from crucible_tinkex.errors import TrialFailedError
from crucible_tinkex.user_calls import called, within


def spins() -> None:
    while True:
        pass


def sleeps() -> None:
    time.sleep(30)  # no exception would reach it before


async def ticks(while_running: asyncio.Future[Any]) -> int:
    found = 0
    while not while_running.done():
        await asyncio.sleep(0.01)
        found += 1
    return found


async def test_a_result_and_an_error_come_through() -> None:
    assert await called(divmod, 7, 2, what="f") == (3, 1)
    for error in (ZeroDivisionError, TimeoutError):

        def fails(error: type[Exception] = error) -> None:
            raise error("its own")

        with pytest.raises(error, match="its own"):
            await called(fails, what="f")


@pytest.mark.parametrize("ends", [sys.exit, lambda: exec("raise KeyboardInterrupt")])
async def test_who_would_end_the_process_fails_by_name(ends: Callable[[], object]) -> None:
    with pytest.raises(TrialFailedError, match=r"loss 'mine:f': unexpected (SystemExit|KeyboardI)"):
        await called(ends, what="loss 'mine:f'")


@pytest.mark.parametrize("hangs", [spins, sleeps])
async def test_who_hangs_is_left_behind_and_the_loop_goes_on(hangs: Callable[[], None]) -> None:
    call = asyncio.ensure_future(called(hangs, what="scorer 'mine:f'", deadline_s=0.2))
    assert await ticks(call) > 3
    with pytest.raises(TrialFailedError, match=r"scorer 'mine:f' did not return within 0\.2 s"):
        await call
    if hangs is spins:  # and it burns no core
        await until(lambda: not running("scorer 'mine:f'", spins))


async def test_who_computes_where_others_have_the_core_is_ended_too() -> None:
    core = min(os.sched_getaffinity(0))

    def spins_behind() -> None:
        os.sched_setaffinity(threading.get_native_id(), {core})
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        while True:
            pass

    other = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", other]) as busy:
        try:
            with pytest.raises(TrialFailedError, match="did not return"):
                await called(spins_behind, what="behind", deadline_s=1.0)
            await until(lambda: not running("behind", spins_behind))
        finally:
            busy.kill()


def works_and_sleeps() -> None:
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pass
    sleeps()


@pytest.mark.parametrize("waits", [sleeps, works_and_sleeps])
@pytest.mark.parametrize("deadline_s", [0.0, 0.3])
async def test_beside_one_that_was_left_behind_code_can_be_traced(
    waits: Callable[[], None], deadline_s: float
) -> None:
    """An exception that waits for its thread would stop a debugger on Python 3.11, for good."""
    with pytest.raises(TrialFailedError):
        await called(waits, what="loss", deadline_s=deadline_s)
    await asyncio.sleep(0.1)  # it is sent, and not yet taken back
    traced = "import sys; sys.settrace(lambda *_: None); (lambda: None)(); sys.settrace(None)"
    before, started = sys.gettrace(), time.monotonic()
    exec(traced)
    sys.settrace(before)
    assert time.monotonic() - started < 20


async def test_a_call_that_is_cancelled_is_abandoned() -> None:
    call = asyncio.ensure_future(called(spins, what="cancelled"))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not running("cancelled", spins))


async def test_one_that_has_returned_as_it_is_abandoned_is_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It tells the loop so just then; pytest fails a test of whose threads one ends by an error."""
    telling = threading.Event()

    def tells(*_: Any) -> None:
        telling.set()
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass

    call = asyncio.ensure_future(called(lambda: None, what="returned"))
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", tells)
    await asyncio.sleep(0)  # its thread begins
    telling.wait(10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    while running("returned", spins):
        time.sleep(0.01)


async def test_a_coroutine_that_takes_too_long() -> None:
    with pytest.raises(TrialFailedError, match=r"step 'judge' did not return within 0\.01 s"):
        async with within(0.01, what="step 'judge'"):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError, match="its own"):
        async with within(10, what="step 'judge'"):
            raise TimeoutError("its own")


def running(name: str, function: Callable[[], None]) -> bool:
    return any(t.name == name and t.is_alive() for t in threading.enumerate())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)
