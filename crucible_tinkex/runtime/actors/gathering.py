"""Calls of many sessions to one actor, sent together: a call of an actor costs a millisecond.

A call leaves at once while none is under way; those that come meanwhile gather and leave together
when it has returned. So a quiet process waits for nothing, and a busy one sends as often as the
actor answers. Each call has its own answer or error. One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, TypeAlias

Call: TypeAlias = tuple[str, Sequence[Any]]
"""A method's name, and its arguments."""


class Gathering:
    """`send` takes calls and returns an answer for each, exceptions among them; what it raises is
    raised by every call that it was given."""

    def __init__(self, send: Callable[[Sequence[Call]], Awaitable[Sequence[Any]]]) -> None:
        self._send = send
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def call(self, method: str, *args: Any) -> Any:
        """Cancelling it leaves the others alone; the call may have been made by then."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(((method, args), answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return await answer

    async def _send_all(self) -> None:
        try:
            while batch := self._take():
                await self._answer(batch)
        finally:
            self._sending = None
            for _, answer in self._take():
                answer.cancel()  # the loop ends

    def _take(self) -> list[tuple[Call, asyncio.Future[Any]]]:
        batch, self._waiting = self._waiting, []
        return [(call, answer) for call, answer in batch if not answer.done()]

    async def _answer(self, batch: Sequence[tuple[Call, asyncio.Future[Any]]]) -> None:
        calls = [call for call, _ in batch]
        sent: list[Any] = await asyncio.gather(self._send(calls), return_exceptions=True)
        failed = isinstance(sent[0], BaseException)
        found = [copy(sent[0]) for _ in batch] if failed else sent[0]
        for (_, answer), value in zip(batch, found, strict=True):
            if answer.done():
                continue
            if isinstance(value, BaseException):
                answer.set_exception(value)
            else:
                answer.set_result(value)
