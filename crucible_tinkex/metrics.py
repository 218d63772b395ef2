"""The catalogue of metrics: what each measures, in which unit, and which way is better.

Guarantees: one entry per name that is ever recorded; an unknown or misspelt name is refused with
the nearest known one. Not here: measuring (`session`, `evaluation`) and ranking (`leaderboard`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from crucible_tinkex.errors import ConfigError

Direction = Literal["min", "max"]

TRAIN_WINDOW_STEPS = 10
"""`train/nll` as a result is the mean over this many last steps (all of them, if there are fewer):
the loss of one batch says more about the batch than about the model."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measurement. `direction` says which way is better; None where neither is."""

    name: str
    unit: str
    direction: Direction | None
    about: str
    objective: bool = False
    """Whether a search can rank by it: it is part of every result that is recorded."""
    indifference: float = 0.0
    """Differences up to this, in its unit, are not worth a run: the cheaper setting will do."""


_METRICS = (
    Metric(
        "eval/nll",
        "nats per completion token",
        "min",
        "mean negative log-likelihood of the held-out completions",
        objective=True,
        indifference=0.002,
    ),
    Metric(
        "eval/perplexity",
        "per completion token",
        "min",
        "exponential of eval/nll",
    ),
    Metric(
        "eval/bpb",
        "bits per byte",
        "min",
        "the same negative log-likelihood, summed and divided by the bytes of the completions: "
        "comparable across tokenizers",
    ),
    Metric(
        "eval/accuracy",
        "share of rows",
        "max",
        "held-out rows whose greedy continuation begins with the expected completion",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "train/nll",
        "nats per completion token",
        "min",
        "mean negative log-likelihood of a training batch; as a result, the mean over the last "
        f"{TRAIN_WINDOW_STEPS} steps",
        objective=True,
        indifference=0.005,
    ),
    Metric("optim/lr", "per step", None, "learning rate of the step, after schedule and warm-up"),
    Metric("optim/grad_norm", "of summed losses", None, "global norm of the gradient before it"),
    Metric("perf/step_s", "s", "min", "wall time of one training step, waits included"),
    Metric("perf/tokens_per_s", "tokens/s", "max", "tokens of a training step over its wall time"),
    Metric("perf/eval_s", "s", "min", "wall time of one evaluation"),
)

CATALOGUE: Mapping[str, Metric] = MappingProxyType({m.name: m for m in _METRICS})
OBJECTIVES = tuple(m.name for m in _METRICS if m.objective)


def metric(name: str) -> Metric:
    """The catalogue's entry. Raises `ConfigError` with the nearest known name."""
    return _find(name, tuple(CATALOGUE), what="metric")


def objective(name: str) -> Metric:
    """As `metric`, of those that a search can rank by."""
    if name in CATALOGUE and name not in OBJECTIVES:
        raise ConfigError(f"{name!r} cannot rank trials; choose one of {', '.join(OBJECTIVES)}")
    return _find(name, OBJECTIVES, what="objective")


def _find(name: str, known: tuple[str, ...], *, what: str) -> Metric:
    if name in known:
        return CATALOGUE[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}")
