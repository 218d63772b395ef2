"""Held-out metrics of a training client's current weights, with what was found on every row.

`eval/nll` is the mean negative log-likelihood in nats per token that is learnt, over all rows.
`eval/accuracy` is what greedy decoding from the prompt would give: a row counts if the continuation
begins with the expected completion. Most rows are judged without decoding, by the probabilities of
the same forward pass: a token above one half is what greedy decoding writes, a token below one in
the vocabulary's size never is. Only rows in between are decoded. The margins are wider than the
rounding by which a service's two passes may differ.

The order of requests never changes the result. A failure ends the requests that still run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from crucible_tinkex.client.interface import SamplingClient, TrainingClient
from crucible_tinkex.client.loss import cross_entropy
from crucible_tinkex.client.wire import Datum, ForwardBackwardOutput, SamplingParams, TensorData
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.training.data import TextDecoder
from crucible_tinkex.training.datums import datum, total_weight
from crucible_tinkex.training.recipe import Evaluation, Example, Tell

T = TypeVar("T")

ROWS_PER_REQUEST = 32
IN_FLIGHT = 64
"""Requests of one evaluation that are under way at once."""
CERTAIN = math.log(0.55)
"""Every completion token more probable than this: greedy decoding writes the completion."""
IMPOSSIBLE = math.log(1e-6)
"""A completion token less probable than this: it is not the most probable one of any vocabulary
below a million."""


async def evaluate(
    client: TrainingClient,
    data: TokenisedDataset,
    config: EvaluationSection,
    *,
    text: TextDecoder,
    tell: Tell,
) -> Evaluation:
    """Evaluate on the first `max_rows` rows of `data`; `tell` hears of rows that are finished."""
    rows = range(min(len(data), config.max_rows or len(data)))
    generates = config.generate and data.has_prompts
    scored = await _forward(client, data, rows)
    metrics = {"eval/nll": scored.loss / scored.weight}
    right = {i: certainty(data, i, scored.logprobs[i]) for i in rows} if generates else {}
    open_rows = [i for i, known in right.items() if known is None]
    finished = len(rows) - len(open_rows)
    tell(finished, len(rows))
    texts: dict[int, str | None] = {}
    if open_rows:
        sampler = await client.sampler()

        async def decode(row: int) -> None:
            nonlocal finished
            right[row], tokens = await _written(sampler, data, row)
            texts[row] = await text.text(tokens)
            finished += 1
            tell(finished, len(rows))

        await _bounded([lambda i=i: decode(i) for i in open_rows])  # type: ignore[misc]
    if generates:
        metrics["eval/accuracy"] = sum(bool(known) for known in right.values()) / len(rows)
    return Evaluation(
        metrics,
        [_example(data, i, scored.logprobs[i], right.get(i), texts.get(i)) for i in rows],
    )


class _Scores:
    """The summed loss of all rows, and the logprobs of each row's targets where they are told."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.weight = 0.0
        self.logprobs: dict[int, list[float] | None] = {}


async def _forward(client: TrainingClient, data: TokenisedDataset, rows: range) -> _Scores:
    """Rows of like length share a request: less padding."""
    by_length = sorted(rows, key=lambda i: int(data.lengths[i]))
    numbers = [
        by_length[start : start + ROWS_PER_REQUEST]
        for start in range(0, len(by_length), ROWS_PER_REQUEST)
    ]
    chunks = [[datum(data, i) for i in chunk] for chunk in numbers]
    outputs = await _bounded([lambda c=c: client.forward(c) for c in chunks])  # type: ignore[misc]
    scores = _Scores()
    scores.loss = sum(cross_entropy(o, chunk) for o, chunk in zip(outputs, chunks, strict=True))
    scores.weight = sum(total_weight(chunk) for chunk in chunks)
    for chunk, batch, output in zip(numbers, chunks, outputs, strict=True):
        scores.logprobs |= zip(chunk, _logprobs(batch, output), strict=True)
    return scores


def _logprobs(batch: Sequence[Datum], output: ForwardBackwardOutput) -> list[list[float] | None]:
    found = [row.get("logprobs") for row in output.loss_fn_outputs]
    wanted = [len(d.loss_fn_inputs["target_tokens"].data) for d in batch]
    return [_whole(tensor, n) for tensor, n in zip(found, wanted, strict=True)]


def _whole(tensor: TensorData | None, length: int) -> list[float] | None:
    if tensor is None or len(tensor.data) != length or tensor.sparse_crow_indices is not None:
        return None
    return list(tensor.data)


async def _bounded(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results in order. The first failure cancels the others, and is raised."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def called(call: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(called(call)) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def certainty(data: TokenisedDataset, row: int, logprobs: Sequence[float] | None) -> bool | None:
    """Whether greedy decoding would write the completion; None where only decoding tells.

    `logprobs` are those of the row's targets, its tokens from the second on.
    """
    expected = data.completion(row)
    start = int(data.prompt_lengths[row])
    tokens, _ = data.example(row)
    follows = tokens[start : start + len(expected)] == expected
    if logprobs is None or start == 0 or not follows or data.eos_id in expected:
        return None
    found = logprobs[start - 1 : start - 1 + len(expected)]
    if all(logprob > CERTAIN for logprob in found):
        return True
    return False if any(logprob < IMPOSSIBLE for logprob in found) else None


async def _written(
    sampler: SamplingClient, data: TokenisedDataset, row: int
) -> tuple[bool, list[int]]:
    """Whether the greedy continuation begins with the completion, and the continuation."""
    expected = data.completion(row)
    params = SamplingParams(max_tokens=len(expected), temperature=0.0)
    response = await sampler.sample(data.prompt(row), params)
    tokens = response.sequences[0].tokens
    return tokens[: len(expected)] == expected, tokens


def _example(
    data: TokenisedDataset,
    row: int,
    logprobs: Sequence[float] | None,
    right: bool | None,
    text: str | None,
) -> Example:
    weights = data.inputs(row).weights
    weight = math.fsum(weights)
    nll = None
    if logprobs is not None and weight:
        pairs = zip(weights, logprobs, strict=True)
        nll = -math.fsum(w * logprob for w, logprob in pairs if w) / weight
    return Example(example_id(data, row), nll, round(weight), right, text)


def example_id(data: TokenisedDataset, row: int) -> str:
    """Stands for the row in every evaluation."""
    return f"{row:05d}"
