"""Held-out rows measured on the weights of a session, or on a checkpoint of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import ValidationError

from crucible_tinkex.client.interface import SamplingClient, TrainingClient
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.config.problems import explain
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import SamplingParams
from crucible_tinkex.training.adapter.rows import as_mapping, tokenised
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.recipes.evaluation import evaluate
from crucible_tinkex.training.recipes.recipe import Evaluation
from crucible_tinkex.training.tinkex.results import Checkpoint
from crucible_tinkex.training.tinkex.service.samplers import complete


class Weights(Protocol):
    """The weights that are measured."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def report(self) -> Reporter: ...

    async def to_evaluate(
        self, checkpoint: Checkpoint | None, *, samples: bool
    ) -> tuple[TrainingClient, SamplingClient | None]: ...


Scorer = Callable[[Mapping[str, Any], str], float]
"""Takes a row and what the model wrote."""


_ASKED = ("metrics", "samples", "answer", "right_by")
"""Keys of `[evaluation]`, besides those that say how to sample."""
_SAMPLED = ("temperature", "max_tokens", "stop", "seed")


def asked(generate: bool, options: Mapping[str, Any]) -> tuple[EvaluationSection, dict[str, Any]]:
    """What is measured, and how scorers sample: of the options of `evaluate`, which has the keys
    of `[evaluation]` and those of `sampling_params`. Raises `ConfigError`."""
    sampling = {key: value for key, value in options.items() if key not in _ASKED}
    given = {key: value for key, value in options.items() if key in _ASKED}
    if given:
        given |= {key: sampling[key] for key in _SAMPLED if sampling.get(key) is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    try:
        section = EvaluationSection.model_validate({"generate": generate, **given})
    except ValidationError as error:
        raise ConfigError(explain(error, source="evaluate", model=EvaluationSection)) from None
    return section, {"temperature": 0.0, **sampling}


def named_scorers(given: Any) -> Mapping[str, Scorer]:
    """Raises `ConfigError` for what is no table of functions."""
    if given is None:
        return {}
    if isinstance(given, Mapping) and all(map(callable, given.values())):
        return given
    raise ConfigError(
        f"evaluate: scorers = {given!r} must be functions by name, such as "
        "{'right': lambda row, completion: ...}"
    )


async def measured(
    live: Weights,
    rows: Sequence[Any],
    checkpoint: Checkpoint | None,
    section: EvaluationSection,
    *,
    max_length: int,
    scorers: Mapping[str, Scorer],
    params: SamplingParams,
) -> Evaluation:
    """The metrics of sweeps, and the mean of each scorer over completions sampled by `params`."""
    data = tokenised(rows, live.tokenizer, max_length=max_length)
    client, sampler = await live.to_evaluate(checkpoint, samples=bool(scorers))
    found = await evaluate(
        client,
        data,
        section,
        tokenizer=live.tokenizer.name,
        tell=live.report.evaluating,
    )
    if sampler is None:
        return found
    scored = await _scored(sampler, live.tokenizer, rows, scorers, params)
    return Evaluation({**found.metrics, **scored}, found.examples)


async def _scored(
    sampler: SamplingClient,
    tokenizer: Tokenizer,
    rows: Sequence[Any],
    scorers: Mapping[str, Scorer],
    params: SamplingParams,
) -> dict[str, float]:
    mappings = [as_mapping(row) for row in rows]
    prompts = [str(m.get("prompt", m.get("input", ""))) for m in mappings]
    written = await complete(sampler, tokenizer, prompts, params, 1)
    return {
        name: sum(score(m, c.text) for m, c in zip(mappings, written, strict=True)) / len(rows)
        for name, score in scorers.items()
    }
