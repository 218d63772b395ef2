"""Calls of what users write: each in a thread of its own, which the event loop need not wait for.

A function that raises, exits or hangs harms the trial that called it, and nothing else: the loop
goes on meanwhile, and after a deadline without an answer the call fails by name. A thread
cannot be killed, so one that computes in Python is sent an exception, and one that waits
(`time.sleep(1e9)`, a socket) is left behind; it is a daemon, which the end of the process does not
wait for. What only a process of its own contains stays: `os._exit`, and C code that does not let go
of the interpreter. On Ray that ends one session process, and its trials are tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from crucible_tinkex.errors import TrialFailedError

T = TypeVar("T")

DEADLINE_S = 600.0
"""How long one call of a loss, a token-weight scheme, an adapter, a scorer or a hook may take."""


class _AbandonedError(SystemExit):
    """Sent to a thread that nobody waits for any more. Threads end by a `SystemExit` in silence."""


class _Call(Generic[T]):
    """One call in its thread; `ended` is set on the loop."""

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], name: str) -> None:
        self._function = function
        self._args = args
        self._error: BaseException | None = None
        self._result: T
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self._started = time.monotonic()
        context = copy_context()
        self._thread = threading.Thread(
            target=lambda: context.run(self._run), name=name, daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - handed on to who waits
            self._error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.ended.set)

    def result(self, what: str) -> T:
        """Of a call that has ended."""
        if self._error is None:
            return self._result
        if isinstance(self._error, Exception):
            raise self._error
        raise TrialFailedError(f"{what}: unexpected {self._error!r}") from self._error

    def abandon(self) -> None:
        """Ends the thread where it computes. One that waits would take the exception only after it,
        and while one is pending Python 3.11 cannot be traced: under a debugger or coverage each
        thread repeats its next function's start for ever (`DO_TRACING` of its `ceval.c`)."""
        thread = self._thread.ident
        if thread is not None and self._thread.is_alive() and self._is_computing():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread), ctypes.py_object(_AbandonedError)
            )

    def _is_computing(self) -> bool:
        """Whether it has had a core for a tenth of the time in which it did not wait for one that
        others had. Unknown (no Linux) is yes."""
        stat = Path(f"/proc/self/task/{self._thread.native_id}/schedstat")  # nanoseconds
        try:
            ran, waited, _ = map(int, stat.read_text().split())
        except OSError:
            return True
        return ran > 0.1 * ((time.monotonic() - self._started) * 1e9 - waited)


async def called(
    function: Callable[..., T], *args: Any, what: str, deadline_s: float | None = None
) -> T:
    """What the function returns, or raises. `what` it is, as in "loss 'mine:focal'".

    Raises `TrialFailedError` where it wants to end the process, or takes longer than `deadline_s`
    (by default `DEADLINE_S`) seconds. A call that is cancelled is abandoned.
    """
    call = _Call(function, args, what)
    try:
        async with within(deadline_s, what=what):
            await call.ended.wait()
    finally:
        if not call.ended.is_set():
            call.abandon()
    return call.result(what)


@contextlib.asynccontextmanager
async def within(deadline_s: float | None = None, *, what: str) -> AsyncIterator[None]:
    """Raises `TrialFailedError` where what is awaited in the block takes longer than these seconds
    (by default `DEADLINE_S`); it is cancelled."""
    deadline_s = DEADLINE_S if deadline_s is None else deadline_s
    try:
        async with asyncio.timeout(deadline_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise TrialFailedError(f"{what} did not return within {deadline_s:g} s") from None
