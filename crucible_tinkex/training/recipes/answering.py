"""Answers that a model writes to the held-out prompts, and their scores.

One request a prompt asks for all its samples, with a seed that follows from the row, so that the
same weights give the same answers whatever else runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.config.trial.evaluation import EXACT
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.datasets.rows import Format
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.protocol.wire import SamplingParams
from crucible_tinkex.scoring import Question, Scored, Scoring
from crucible_tinkex.training.data import text_of
from crucible_tinkex.user_calls import called

_SEEDS = 2**31


async def answer(
    sampler: SamplingClient,
    data: TokenisedDataset,
    row: int,
    section: EvaluationSection,
) -> list[list[int]]:
    """The tokens of `section.samples` answers to the prompt of `row`."""
    params = SamplingParams(
        max_tokens=section.max_tokens,
        temperature=section.sampling_temperature,
        seed=(section.seed * 1_000_003 + row) % _SEEDS,
        stop=list(section.stop) or None,
    )
    response = await sampler.sample(data.prompt(row), params, num_samples=section.samples)
    return [sequence.tokens for sequence in response.sequences]


async def scored(
    tokenizer: str | None,
    data: TokenisedDataset,
    rows: Sequence[int],
    written: Callable[[int], list[list[int]]],
    section: EvaluationSection,
) -> tuple[list[Scored], dict[str, float]]:
    """Each row with its scores, in order, and the metrics of all. Raises
    `ConfigError` where the tokenizer cannot be had, or a function of the user's fails, and
    `TrialFailedError` where one exits or hangs."""
    text = await asyncio.to_thread(text_of, tokenizer)
    scoring = Scoring(section)

    def of(row: int) -> Scored:
        question = Question(
            data.example_id(row),
            text(data.prompt(row)),
            text(data.completion(row)),
            data.group(row),
            data.notes(row),
        )
        return scoring.scored(question, [text(tokens) for tokens in written(row)])

    users = ", ".join(table.function for table in section.scores if table.function)
    name = users or "evaluation.metrics"
    found = [await called(of, row, what=f"{name}, row {data.example_id(row)}") for row in rows]
    return found, scoring.metrics(found)


def check_judged(
    section: EvaluationSection, formats: Collection[Format], *, said: Collection[str]
) -> None:
    """Raises `ConfigError` where code would be called right by its spelling, because nobody said
    otherwise: a program is right if its tests pass, and no program that a model wrote is run
    here. `said`: the keys of `[evaluation]` that were given."""
    if "humaneval" not in formats or section.right_by != EXACT or "right_by" in said:
        return
    asked = [
        *(f"pass@{k}" for k in section.passes),
        *({"majority"} & set(map(str, section.metrics))),
    ]
    if asked:
        raise ConfigError(
            f"evaluation.metrics: {asked[0]} of HumanEval says whether a program passes its tests, "
            "and crucible runs no program that a model wrote; name a function that does, and "
            'evaluation.right_by (docs/evaluation.md), or set right_by = "exact_match" to compare '
            "the text with the published solution"
        )


def check_answerable(section: EvaluationSection, data: TokenisedDataset | None) -> None:
    """Raises `DataError` where answers are asked for and the rows have no prompts."""
    if section.metrics and data is not None and not data.has_prompts:
        raise DataError(
            "evaluation.metrics are measured on answers to prompts, and the held-out rows are "
            "plain text; give rows with prompts, or leave evaluation.metrics out"
        )
