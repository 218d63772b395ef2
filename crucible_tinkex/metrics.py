"""The catalogue of metrics: what each measures, in which unit, and which way is better.

Guarantees: one entry per name that is ever recorded; an unknown or misspelt name is refused with
the nearest known one. Not here: measuring (`session`, `evaluation`) and ranking (`leaderboard`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn

from crucible_tinkex.errors import ConfigError, did_you_mean, nearest

Direction = Literal["min", "max"]

SCORE = "eval/score/"
"""Before the names of scores that an experiment defines."""
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
        "eval/exact_match",
        "share of answers",
        "max",
        "generated answers that equal the expected text, white space and case aside",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/similarity",
        "cosine",
        "max",
        "likeness of generated answers and expected text: cosine of their character trigrams",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/majority",
        "share of rows",
        "max",
        "rows in which the answer that most samples give is right",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/class_accuracy",
        "share of rows",
        "max",
        "rows whose generated answer is the expected class",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/f1_macro",
        "share",
        "max",
        "mean of the F1 of every class that occurs or is answered",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/regex",
        "share of answers",
        "max",
        "generated answers in which the regular expression is found",
        objective=True,
        indifference=0.005,
    ),
    Metric(
        "eval/json_schema",
        "share of answers",
        "max",
        "generated answers that are JSON as the schema allows it",
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
    Metric(
        "train/loss",
        "per loss weight",
        "min",
        "what is minimised, where that is not train/nll: a loss of your own, or weighed tokens",
    ),
    Metric("optim/lr", "per step", None, "learning rate of the step, after schedule and warm-up"),
    Metric("optim/grad_norm", "of summed losses", None, "global norm of the gradient before it"),
    Metric("perf/step_s", "s", "min", "wall time of one training step, waits included"),
    Metric("perf/tokens_per_s", "tokens/s", "max", "tokens of a training step over its wall time"),
    Metric("perf/eval_s", "s", "min", "wall time of one evaluation"),
)

STEP_FAMILIES = {
    "train/loss/": ("per loss weight", "a part of train/loss"),
    "train/adapter/": ("its own", "what calculate_metrics of an adapter says of a step"),
}
"""Metrics of steps that a loss or an adapter names; neither ranks."""
FAMILIES: Mapping[str, tuple[str, str]] = {
    "eval/pass@K": (
        r"eval/pass@[1-9]\d*",
        "probability that one of K generated answers is right, without bias from the samples",
    ),
    "eval/score/NAME": (
        r"eval/score/[\w.-]+",
        "mean of what a function, or a rule that was given a name, says of the generated answers",
    ),
    "eval/precision/CLASS": (r"eval/precision/.+", "share of the answers CLASS that are right"),
    "eval/recall/CLASS": (r"eval/recall/.+", "share of the rows of CLASS that are answered so"),
    "eval/f1/CLASS": (r"eval/f1/.+", "harmonic mean of the two"),
}
"""Metrics that an experiment asks for, by the form of their names: a pattern and what they say. All
are shares of which more is better, but for the scores of functions, whose unit is their own, and
for `_LESS_IS_BETTER`."""
_LESS_IS_BETTER = (f"{SCORE}polarity_conflict", f"{SCORE}citation_invalid_rate")

CATALOGUE: Mapping[str, Metric] = MappingProxyType({m.name: m for m in _METRICS})
OBJECTIVES = tuple(m.name for m in _METRICS if m.objective)
_LOWER_IS_BETTER = ("loss", "nll", "perplexity", "citation_invalid_rate", "convergence_steps")
_HIGHER_IS_BETTER = ("loss_reduction", "loss_reduction_fraction")


def told_first(names: Iterable[str], *, first: str | None = None) -> list[str]:
    """Names as a table that has not room for all should show them: `first`, then what can rank in
    the order of the catalogue, then the rest of it, then by name."""
    order = {name: place for place, name in enumerate(dict.fromkeys((*OBJECTIVES, *CATALOGUE)))}
    return sorted(set(names), key=lambda n: (n != first, order.get(n, len(order)), n))


def known(name: str) -> Metric | None:
    """The catalogue's entry, or that of a family; None where neither knows the name."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    for start, (unit, what) in STEP_FAMILIES.items():
        if name.startswith(start):
            return Metric(name, unit, "min" if start == "train/loss/" else None, what)
    for pattern, about in FAMILIES.values():
        if re.fullmatch(pattern, name):
            unit = "score" if name.startswith(SCORE) else "share"
            better: Direction = "min" if name in _LESS_IS_BETTER else "max"
            return Metric(name, unit, better, about, objective=True, indifference=0.005)
    return None


def metric(name: str) -> Metric:
    """As `known`. Raises `ConfigError` with the nearest known name."""
    return known(name) or _unknown(name, tuple(CATALOGUE), what="metric")


def objective(name: str) -> Metric:
    """As `metric`, of those that a search can rank by."""
    found = known(name)
    if found is None:
        _unknown(name, OBJECTIVES, what="objective")
    if not found.objective:
        raise ConfigError(f"{name!r} cannot rank trials; choose one of {', '.join(OBJECTIVES)}")
    return found


def direction_of(name: str) -> Direction:
    """Which way is better: the catalogue's where it knows the metric, else by the name."""
    found = known(name)
    if found is not None and found.direction is not None:
        return found.direction
    last = name.rpartition("/")[2]
    if last in _HIGHER_IS_BETTER:
        return "max"
    return "min" if any(last == w or last.endswith(f"_{w}") for w in _LOWER_IS_BETTER) else "max"


def better(name: str, direction: Direction | None) -> Direction:
    """Which way the metric is better: as said, else as the catalogue has it. Raises `ConfigError`
    for a metric of which neither is known, and for a direction that is none."""
    if direction not in ("min", "max", None):
        raise ConfigError(f"direction {direction!r} must be 'min' or 'max'")
    entry = known(name)
    found = direction or (entry.direction if entry else None)
    if found is None:
        meant = nearest(name, CATALOGUE)
        hint = f", or did you mean {meant!r}?" if meant else ""
        raise ConfigError(f"say which way {name!r} is better: direction 'min' or 'max'{hint}")
    return found


def _unknown(name: str, names: tuple[str, ...], *, what: str) -> NoReturn:
    hint = did_you_mean(name, names, cutoff=0.5)
    raise ConfigError(f"unknown {what} {name!r}; {hint}known: {', '.join((*names, *FAMILIES))}")
