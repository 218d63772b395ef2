"""The rows of an attestation: weighed, or made into samples of another policy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from crucible_tinkex.client.model.loss import target_logprobs
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput
from crucible_tinkex.training.attest.settings import Settings
from crucible_tinkex.training.recipes.datums import numbers, with_weights


def weighed(batch: Sequence[Datum], weights: Sequence[float]) -> list[Datum]:
    """The rows with these loss weights, in turn, at the tokens that are learnt."""
    turn = itertools.cycle(weights)
    return [with_weights(row, _at_learnt(row, turn)) for row in batch]


def off_policy(
    batch: Sequence[Datum], scored: ForwardBackwardOutput, settings: Settings
) -> list[Datum]:
    """The rows as samples whose sampler was less or more sure than the model that scored them, by
    `drifts`, with `advantages`; both 0 at what is only read."""
    drifts, advantages = itertools.cycle(settings.drifts), itertools.cycle(settings.advantages)
    found = []
    for row, logprobs in zip(batch, target_logprobs(scored, batch), strict=True):
        sampled = [p - d for p, d in zip(logprobs, _at_learnt(row, drifts), strict=True)]
        inputs = {
            "target_tokens": row.loss_fn_inputs["target_tokens"],
            "logprobs": numbers(sampled),
            "advantages": numbers(_at_learnt(row, advantages)),
        }
        found.append(row.model_copy(update={"loss_fn_inputs": inputs}))
    return found


def _at_learnt(row: Datum, turn: Iterator[float]) -> list[float]:
    return [next(turn) if weight else 0.0 for weight in row.loss_fn_inputs["weights"].data]
