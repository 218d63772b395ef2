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
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from crucible_tinkex.errors import TrialFailedError

T = TypeVar("T")

DEADLINE_S = 600.0
"""How long one call of a loss, a token-weight scheme, an adapter, a scorer or a hook may take."""
PATIENCE_S = 2.0
"""How long a thread that nobody waits for has to take the exception that ends it."""


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
        self._sending = threading.Lock()
        self._has_returned = False
        context = copy_context()
        self._thread = threading.Thread(
            target=lambda: context.run(self._run), name=name, daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(_AbandonedError):
            try:
                self._result = self._function(*self._args)
            except BaseException as error:  # noqa: BLE001 - handed on to who waits
                self._error = error
            with self._sending:  # from here on it is sent nothing
                self._has_returned = True
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
        """Ends the thread where it computes; one that waits is left behind."""
        threading.Thread(target=self._end, name="ending", daemon=True).start()

    def _end(self) -> None:
        """Sends the thread an exception, which it takes where it computes, and takes it back from
        one that waits. While one is pending Python 3.11 cannot be traced: under a debugger or
        coverage each thread repeats its next function's start (`DO_TRACING` of its `ceval.c`); so
        this one is not."""
        sys.settrace(None)
        ident = self._thread.ident
        assert ident is not None, "it was started"
        with self._sending:
            if self._has_returned:
                return
            _send(ident, _AbandonedError)
        self._thread.join(PATIENCE_S)
        _send(ident, None)
        with contextlib.suppress(_AbandonedError):  # lowers the interpreter's one flag for all
            _send(threading.get_ident(), _AbandonedError)
            while True:
                time.sleep(0)


def _send(ident: int, error: type[BaseException] | None) -> None:
    """To be raised in that thread at its next step; None takes back what it has not taken."""
    sent = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), sent)


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
