"""Counts what an attempt uses: a witness of its clients that adds up their tokens.

Tokens count when they are submitted, whatever becomes of them: of an operation that fails after a
service took it, nobody knows whether it is billed. A call that the client repeats counts once,
because the service does it once. Samples count when they arrive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from crucible_tinkex.client.model.witnessed import Asked
from crucible_tinkex.protocol.wire import Datum, SampleResponse
from crucible_tinkex.registry import Spent

T = TypeVar("T")


class Meter:
    """The sums of one attempt; a `Witness`. Seconds run from its making."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.train = self.prefill = self.sampled = self.steps = 0

    def spent(self) -> Spent:
        return Spent(
            self.train, self.prefill, self.sampled, self._clock() - self._started, self.steps
        )

    def around(self, asked: Asked, submit: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        answer = submit()
        tokens = _tokens(asked.data) + len(asked.prompt)
        if asked.operation == "forward_backward":
            self.train += tokens
        if asked.custom or asked.operation in ("forward", "sample"):
            self.prefill += tokens  # of a custom loss: its forward pass comes first
        self.steps += asked.operation == "optim_step"
        return self._arrived(answer) if asked.operation == "sample" else answer

    async def _arrived(self, answer: Awaitable[T]) -> T:
        found = await answer
        if isinstance(found, SampleResponse):
            self.sampled += sum(len(s.tokens) for s in found.sequences)
        return found


def cost_of(data: Sequence[Datum], *, custom: bool) -> Spent:
    """Of a step on these rows, before it is sent; see `Meter.around`."""
    tokens = _tokens(data)
    return Spent(train_tokens=tokens, prefill_tokens=tokens if custom else 0, steps=1)


def _tokens(data: Sequence[Datum]) -> int:
    return sum(d.model_input.length for d in data)
