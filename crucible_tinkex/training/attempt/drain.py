"""Work that ends early when sessions are asked to drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from crucible_tinkex.errors import TrialFailedError

T = TypeVar("T")


class DrainedError(Exception):
    """The work was given up. Never leaves `training`."""


def at_once() -> float:
    return 0.0


async def contained(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. An exit that somebody's code asks for ends this work, not the process
    with its other trials: asyncio would let it through."""
    try:
        return await work
    except SystemExit as e:
        raise TrialFailedError(f"unexpected SystemExit: {e.code}") from e


async def unless_drained(
    work: Coroutine[Any, Any, T],
    drain: asyncio.Event,
    *,
    grace: Callable[[], float] = at_once,
    context: Context | None = None,
) -> T:
    """What `work` returns or raises, in `context`; `DrainedError` if that takes longer than
    `grace()` seconds from when `drain` was set. Nothing of `work` runs any more when this ends."""
    task = asyncio.create_task(contained(work), context=context)
    asked = asyncio.ensure_future(drain.wait())
    try:
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and (grace_s := grace()) > 0:
            await asyncio.wait({task}, timeout=grace_s)
        if not task.done():
            raise DrainedError
        return await task
    finally:
        asked.cancel()
        task.cancel()
        await asyncio.gather(task, asked, return_exceptions=True)
