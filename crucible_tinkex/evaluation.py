"""Held-out metrics of a training client's current weights.

`eval/nll` is the mean negative log-likelihood in nats per completion token, over all rows.
`eval/accuracy` is measured on what the model really writes: greedy decoding from the prompt, a row
counts if the continuation begins with the expected completion. Rows are cut to `max_rows`; the
order of requests never changes the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from crucible_tinkex.client.interface import SamplingClient, TrainingClient
from crucible_tinkex.client.loss import cross_entropy
from crucible_tinkex.client.wire import SamplingParams
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.datums import datum, total_weight

ROWS_PER_REQUEST = 32


@dataclass(frozen=True)
class Evaluation:
    """Metrics by tag, and how many tokens were asked for."""

    metrics: dict[str, float]
    tokens: int


async def evaluate(
    training: TrainingClient, data: TokenisedDataset, config: EvaluationSection
) -> Evaluation:
    """Evaluate on the first `max_rows` rows of `data`."""
    rows = range(min(len(data), config.max_rows or len(data)))
    metrics = {"eval/nll": await _nll(training, data, rows)}
    tokens = sum(len(data.inputs(i).model_input) for i in rows)
    if config.generate and data.has_prompts:
        sampler = await training.sampler()
        metrics["eval/accuracy"] = await _accuracy(sampler, data, rows)
        tokens += sum(len(data.prompt(i)) for i in rows)
    return Evaluation(metrics, tokens)


async def _nll(training: TrainingClient, data: TokenisedDataset, rows: range) -> float:
    """Rows of like length share a request: less padding."""
    by_length = sorted(rows, key=lambda i: len(data.inputs(i).model_input))
    chunks = [
        [datum(data, i) for i in by_length[start : start + ROWS_PER_REQUEST]]
        for start in range(0, len(by_length), ROWS_PER_REQUEST)
    ]
    outputs = await asyncio.gather(*(training.forward(chunk) for chunk in chunks))
    loss = sum(cross_entropy(o, chunk) for o, chunk in zip(outputs, chunks, strict=True))
    return loss / sum(total_weight(chunk) for chunk in chunks)


async def _accuracy(sampler: SamplingClient, data: TokenisedDataset, rows: Sequence[int]) -> float:
    answers = await asyncio.gather(*(_is_right(sampler, data, i) for i in rows))
    return sum(answers) / len(answers)


async def _is_right(sampler: SamplingClient, data: TokenisedDataset, row: int) -> bool:
    expected = list(data.completion(row))
    params = SamplingParams(max_tokens=len(expected), temperature=0.0)
    response = await sampler.sample(data.prompt(row), params)
    return response.sequences[0].tokens[: len(expected)] == expected
