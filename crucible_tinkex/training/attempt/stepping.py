"""The one training loop: steps sent ahead of the results of earlier ones, and their results in
order.

Both a sweep's trial (`session`) and the adapter's session train through `take_steps`. A step is a
forward and backward pass on its batch, in `Update.accumulate` portions whose gradients the service
adds up, then one optimizer step. All of a step is submitted before any of it is awaited, so that a
service with clock cycles does it in one. A loop that ends early cancels the waits that remain; the
service may still do what was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.client.model.chunks import merge
from crucible_tinkex.errors import TrialFailedError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, OptimStepResponse
from crucible_tinkex.training.recipes.recipe import Update, Updates


@dataclass(frozen=True)
class StepResult:
    """What the service answered to one step; `backward` is of the whole batch."""

    number: int
    update: Update
    backward: ForwardBackwardOutput
    optim: OptimStepResponse


@dataclass
class _Step:
    """A step that was sent and not yet awaited."""

    number: int
    update: Update
    backward: Sequence[asyncio.Future[ForwardBackwardOutput]]
    optim: asyncio.Future[OptimStepResponse]

    def cancel(self) -> None:
        for future in self.backward:
            future.cancel()
        self.optim.cancel()


async def _always(update: Update) -> bool:
    return True


async def take_steps(
    recipe: Updates,
    client: TrainingClient,
    numbers: Iterable[int],
    done: Callable[[StepResult], Awaitable[None]],
    *,
    ahead: int,
    is_over: Callable[[], bool],
    may_send: Callable[[Update], Awaitable[bool]] = _always,
) -> None:
    """`done` is called with the result of every step of `numbers`, in order; `ahead` more may be
    under way meanwhile. When `is_over` or `may_send` of the next step says so, nothing more is sent
    and what was sent is still awaited.
    """
    pending: deque[_Step] = deque()
    try:
        for number in numbers:
            if is_over():
                break
            update = await recipe.update(number, client)
            if not await may_send(update):
                break
            pending.append(_submit(client, update, number))
            if len(pending) > ahead:
                await done(await _result(pending))
        while pending:
            await done(await _result(pending))
    finally:
        for step in pending:
            step.cancel()


def _submit(client: TrainingClient, update: Update, number: int) -> _Step:
    backward = [asyncio.ensure_future(send(client, update, part)) for part in portions(update)]
    return _Step(number, update, backward, asyncio.ensure_future(client.optim_step(update.adam)))


def send(
    client: TrainingClient, update: Update, part: Sequence[Datum]
) -> Awaitable[ForwardBackwardOutput]:
    if update.custom is not None:
        return client.forward_backward_custom(part, update.custom(part))
    return client.forward_backward(part, loss_fn=update.loss_fn, loss_fn_config=update.loss_config)


async def _result(pending: deque[_Step]) -> StepResult:
    step = pending[0]  # stays among the pending, to be cancelled, until it is whole
    outputs = [await future for future in step.backward]
    optim = await step.optim
    pending.popleft()
    return StepResult(step.number, step.update, merge(outputs), optim)


def portions(update: Update) -> list[Sequence[Datum]]:
    """The batch in `accumulate` consecutive parts whose sizes differ by at most one row."""
    rows, parts = len(update.batch), max(1, min(update.accumulate, len(update.batch)))
    edges = [rows * i // parts for i in range(parts + 1)]
    return [update.batch[a:b] for a, b in itertools.pairwise(edges)]


def check_finite(measured: Mapping[str, float], step: int) -> None:
    """Raises `TrialFailedError` that names what is not a finite number."""
    for name, value in measured.items():
        if not math.isfinite(value):
            raise TrialFailedError(
                f"{name} became {value} at step {step}; try a lower learning rate"
            )


def next_milestone(step: int, last: int, *every: int) -> int:
    """The first step after `step` that is a multiple of one of `every` (0: never), or `last`."""
    return min([last, *((step // n + 1) * n for n in every if n > 0)])
