"""Held-out metrics of a training client's current weights, with what was found on every row.

`eval/nll` is the mean negative log-likelihood in nats per token that is learnt, over all rows;
`eval/perplexity` is its exponential, and `eval/bpb` the same sum in bits per byte of text, in which
bases with different tokenizers can be compared (where the data know how many bytes they learn).
`eval/accuracy` is what greedy decoding from the prompt would give: a row counts if the continuation
begins with the expected completion. Most rows are judged without decoding, by the probabilities of
the same forward pass: a token above one half is what greedy decoding writes, a token below one in
the vocabulary's size never is. Only rows in between are decoded. The margins are wider than the
rounding by which a service's two passes may differ.

Where `evaluation.metrics` ask for them, the model also writes answers to every prompt
(`answering`), which `scoring` scores.

The order of requests never changes the result. A failure ends the requests that still run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.client.model.loss import cross_entropy, target_logprobs
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, SamplingParams
from crucible_tinkex.registry import Spent
from crucible_tinkex.scoring import Scored, bits_per_byte, perplexity
from crucible_tinkex.training.data import decoded
from crucible_tinkex.training.recipes.answering import answer, check_answerable, scored
from crucible_tinkex.training.recipes.datums import datum, total_weight
from crucible_tinkex.training.recipes.recipe import Evaluation, Example, Tell

T = TypeVar("T")

ROWS_PER_REQUEST = 32
IN_FLIGHT = 64
"""Requests of one evaluation that are under way at once."""
CERTAIN = math.log(0.55)
"""Every completion token more probable than this: greedy decoding writes the completion."""
IMPOSSIBLE = math.log(1e-6)
"""A completion token less probable than this: it is not the most probable one of any vocabulary
below a million."""


class Weights(Protocol):
    """What an evaluation needs of a `TrainingClient`."""

    def forward(self, data: Sequence[Datum]) -> Awaitable[ForwardBackwardOutput]:
        """The logprobs of the rows' targets."""
        ...

    async def sampler(self) -> SamplingClient: ...


async def evaluate(
    client: Weights,
    data: TokenisedDataset,
    config: EvaluationSection,
    *,
    tokenizer: str | None,
    tell: Tell,
) -> Evaluation:
    """Evaluate on the first `max_rows` rows of `data`; `tell` hears of rows that are finished."""
    check_answerable(config, data)
    rows = range(min(len(data), config.max_rows or len(data)))
    work = _Work(client, data, rows, config, tell)
    metrics = _likelihood(data, rows, *await work.score())
    if work.generates:
        await work.decode()
        metrics["eval/accuracy"] = sum(bool(work.right[i]) for i in rows) / len(rows)
    texts = await _texts(tokenizer, work.written)
    examples = [_example(data, i, work.logprobs[i], work.right[i], texts.get(i)) for i in rows]
    if config.metrics:
        await work.answer()
        written = work.answers.__getitem__
        found, scores = await scored(tokenizer, data, rows, written, config)
        examples = [_answered(e, row) for e, row in zip(examples, found, strict=True)]
        metrics |= scores
    return Evaluation(metrics, examples)


def cost(data: TokenisedDataset, config: EvaluationSection) -> Spent:
    """What `evaluate` uses: each row read once; where `generate` asks for it, some prompts again
    and their completions written, at most all; where `metrics` do, every prompt, and for each
    sample at most `max_tokens`."""
    count = min(len(data), config.max_rows or len(data))
    whole = int(data.lengths[:count].sum())
    prompts = int(data.prompt_lengths[:count].sum())
    read, written = whole - count, 0
    if config.generate and data.has_prompts:
        read, written = read + prompts, whole - prompts
    if config.metrics:
        read, written = read + prompts, written + count * config.samples * config.max_tokens
    return Spent(prefill_tokens=read, sample_tokens=written)


def _likelihood(
    data: TokenisedDataset, rows: range, loss: float, weight: float
) -> dict[str, float]:
    nll = loss / weight
    found = {"eval/nll": nll, "eval/perplexity": perplexity(nll)}
    if size := int(data.learnt_bytes[: len(rows)].sum(dtype="int64")):
        found["eval/bpb"] = bits_per_byte(loss, size)
    return found


class _Work:
    """What is known of every row so far."""

    def __init__(
        self,
        client: Weights,
        data: TokenisedDataset,
        rows: range,
        config: EvaluationSection,
        tell: Tell,
    ) -> None:
        self._client = client
        self._data = data
        self._rows = rows
        self._config = config
        self._tell = tell
        self._sampler: SamplingClient | None = None
        self._finished = 0
        self._of = len(rows) * (2 if config.metrics else 1)
        self.generates = config.generate and data.has_prompts
        self.answers: dict[int, list[list[int]]] = {}
        """The tokens of every sample."""
        self.logprobs: dict[int, Sequence[float]] = {}
        """Of the row's targets, where the service tells them."""
        self.right: dict[int, bool | None] = {}
        self.written: dict[int, list[int]] = {}
        """What was decoded."""

    def _finish(self, rows: int) -> None:
        self._finished += rows
        if rows:
            self._tell(self._finished, self._of)

    async def score(self) -> tuple[float, float]:
        """The summed loss and its weight. Rows of like length share a request: less padding."""
        self._tell(0, self._of)
        by_length = sorted(self._rows, key=lambda i: int(self._data.lengths[i]))
        chunks = [
            by_length[start : start + ROWS_PER_REQUEST]
            for start in range(0, len(by_length), ROWS_PER_REQUEST)
        ]
        scored = await bounded([partial(self._score, chunk) for chunk in chunks])
        return sum(loss for loss, _ in scored), sum(weight for _, weight in scored)

    async def _score(self, rows: Sequence[int]) -> tuple[float, float]:
        batch = [datum(self._data, i) for i in rows]
        output = await self._client.forward(batch)
        self.logprobs |= zip(rows, target_logprobs(output, batch), strict=True)
        for i in rows:
            known = certainty(self._data, i, self.logprobs[i]) if self.generates else None
            self.right[i] = known
        undecided = sum(self.right[i] is None for i in rows) if self.generates else 0
        self._finish(len(rows) - undecided)
        return cross_entropy(output, batch), total_weight(batch)

    async def decode(self) -> None:
        """Let the model write where the probabilities do not tell what it would write."""
        undecided = [i for i in self._rows if self.right[i] is None]
        if undecided:
            sampler = await self._sampling()
            await bounded([partial(self._decode, sampler, i) for i in undecided])

    async def answer(self) -> None:
        """Let the model answer every prompt."""
        sampler = await self._sampling()
        await bounded([partial(self._answer, sampler, i) for i in self._rows])

    async def _answer(self, sampler: SamplingClient, row: int) -> None:
        self.answers[row] = await answer(sampler, self._data, row, self._config)
        self._finish(1)

    async def _sampling(self) -> SamplingClient:
        if self._sampler is None:
            self._sampler = await self._client.sampler()
        return self._sampler

    async def _decode(self, sampler: SamplingClient, row: int) -> None:
        expected = self._data.completion(row)
        params = SamplingParams(max_tokens=len(expected), temperature=0.0)
        response = await sampler.sample(self._data.prompt(row), params)
        tokens = response.sequences[0].tokens
        self.right[row], self.written[row] = tokens[: len(expected)] == expected, tokens
        self._finish(1)


async def bounded(
    calls: Iterable[Callable[[], Awaitable[T]]], *, at_once: int = IN_FLIGHT
) -> list[T]:
    """The results in order, of at most so many calls at once. The first failure cancels the others,
    and is raised when they have ended."""
    slots = asyncio.Semaphore(at_once)

    async def called(call: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(called(call)) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def certainty(data: TokenisedDataset, row: int, logprobs: Sequence[float]) -> bool | None:
    """Whether greedy decoding would write the completion; None where only decoding tells.

    `logprobs` are those of the row's targets, its tokens from the second on.
    """
    expected = data.completion(row)
    start = int(data.prompt_lengths[row])
    tokens, _ = data.example(row)
    follows = tokens[start : start + len(expected)] == expected
    if start == 0 or not follows or data.eos_id in expected:
        return None
    found = logprobs[start - 1 : start - 1 + len(expected)]
    if all(logprob > CERTAIN for logprob in found):
        return True
    return False if any(logprob < IMPOSSIBLE for logprob in found) else None


async def _texts(tokenizer: str | None, written: Mapping[int, list[int]]) -> dict[int, str | None]:
    if tokenizer is None or not written:
        return {}
    texts = await asyncio.to_thread(decoded, tokenizer, list(written.values()))
    return dict(zip(written, texts, strict=True))


def _example(
    data: TokenisedDataset,
    row: int,
    logprobs: Sequence[float],
    right: bool | None,
    text: str | None,
) -> Example:
    weights = data.inputs(row).weights
    weight = math.fsum(weights)
    nll = None
    if weight:
        pairs = zip(weights, logprobs, strict=True)
        nll = -math.fsum(w * logprob for w, logprob in pairs if w) / weight
    return Example(data.example_id(row), nll, round(weight), right, text, data.group(row))


def _answered(example: Example, row: Scored) -> Example:
    """With the answers; its text is the first of them where nothing was decoded before."""
    text = row.texts[0] if example.text is None else example.text
    return replace(
        example, text=text, expected=row.question.expected, answers=row.texts, scores=row.scores
    )
