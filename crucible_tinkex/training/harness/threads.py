"""A plain function beside an event loop, in a thread that nobody has to wait for.

`asyncio.to_thread` would run only so many at a time, and hold up the end of the process until a
step that was cut off had ended by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns or raises. Cancelled, it leaves the function to itself."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = copy_context()

    def tell(result: T | None, error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result((result, error))

    def work() -> None:
        result, error = None, None
        try:
            result = context.run(function, *arguments)
        except BaseException as raised:  # noqa: BLE001 - handed on to who awaits it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody awaits it
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="harness step", daemon=True).start()
    result, error = await ended
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
