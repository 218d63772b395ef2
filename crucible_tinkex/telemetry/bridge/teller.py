"""A witness of clients that tells a bridge when an operation starts, and how it ends.

An operation starts when it is submitted and stops when its answer is there, however many calls over
HTTP that takes; `duration_s` is the time between. A wait that is cancelled tells nothing: the
operation goes on.

Each operation has a context (`contextvars`) of its own: what a handler sets there at `_start`, its
work and its calls over HTTP find, and so does the handler at `_stop` or `_exception`. Operations
that overlap keep theirs apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, TypeVar

from crucible_tinkex.client.model.witnessed import Asked
from crucible_tinkex.errors import error_type
from crucible_tinkex.protocol.wire import (
    Datum,
    ForwardBackwardOutput,
    OptimStepResponse,
    SampleResponse,
)
from crucible_tinkex.telemetry.bridge.bridge import Bridge

T = TypeVar("T")


class Teller:
    """A `Witness`."""

    def __init__(self, bridge: Bridge, clock: Callable[[], float] = time.perf_counter) -> None:
        self._bridge = bridge
        self._clock = clock

    def around(self, asked: Asked, submit: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        context = copy_context()
        return context.run(self._around, asked, submit, context)

    def _around(
        self, asked: Asked, submit: Callable[[], Awaitable[T]], context: Context
    ) -> Awaitable[T]:
        started = self._clock()
        self._bridge.execute(f"{asked.operation}_start", **asked.about)
        try:
            answer = asyncio.ensure_future(submit())
        except BaseException as error:
            self._failed(asked, started, error)
            raise
        answer.add_done_callback(lambda done: self._done(asked, started, done), context=context)
        return answer

    def _done(self, asked: Asked, started: float, answer: asyncio.Future[T]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is not None:
            self._failed(asked, started, error)
            return
        measured = {
            "duration_s": self._clock() - started,
            **_measured(asked.data, answer.result()),
        }
        self._bridge.execute(f"{asked.operation}_stop", measured, **asked.about)

    def _failed(self, asked: Asked, started: float, error: BaseException) -> None:
        self._bridge.execute(
            f"{asked.operation}_exception",
            {"duration_s": self._clock() - started},
            **asked.about,
            error=str(error),
            error_type=error_type(error),
        )


def _measured(data: Sequence[Datum], answer: object) -> Mapping[str, Any]:
    match answer:
        case ForwardBackwardOutput():
            tokens = sum(d.model_input.length for d in data)
            return {**(answer.metrics or {}), "tokens": tokens}
        case OptimStepResponse():
            return dict(answer.metrics or {})
        case SampleResponse():
            return {"tokens": sum(len(s.tokens) for s in answer.sequences)}
        case list():  # logprobs
            return {"tokens": 0}
    return {}
