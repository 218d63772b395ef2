"""Metrics of one evaluation with their intervals, from the rows behind them.

`eval/bpb` has the interval of `eval/nll` in its own unit, with bytes per token taken as known; that
of precision, recall and F1 is bootstrapped over rows or groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crucible_tinkex.bench.intervals import Floats
from crucible_tinkex.bench.means import Measured, bootstrap, mean_of, numbered
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.scoring import Question, Scored, Scoring, classes, perplexity
from crucible_tinkex.training.recipes.recipe import Example

_OF_CLASSES = ("f1_macro", "precision", "recall", "f1")


def measured(
    metrics: Mapping[str, float], rows: Sequence[Example], section: EvaluationSection
) -> dict[str, Measured]:
    """Every metric with its interval, or without where the rows do not tell."""
    found = {tag: Measured(value) for tag, value in metrics.items()}
    direct: dict[str, list[float | None]] = {
        "eval/nll": [e.nll for e in rows],
        "eval/accuracy": [e.correct for e in rows],
        **{t: [e.scores.get(t) for e in rows] for t in metrics if any(t in e.scores for e in rows)},
    }
    functions = {table.tag for table in section.scores if table.function is not None}
    for tag, values in direct.items():
        kept = [i for i, value in enumerate(values) if value is not None]
        if tag in metrics and kept:
            found[tag] = mean_of(
                [float(values[i] or 0) for i in kept],
                weights=[rows[i].tokens for i in kept] if tag == "eval/nll" else None,
                clusters=_clusters([rows[i] for i in kept]),
                share=tag != "eval/nll" and tag not in functions,
            )
    return found | _of_likelihood(metrics, found) | _of_classes(metrics, rows, section)


def _clusters(rows: Sequence[Example]) -> list[str]:
    """The group of each row, else the row itself."""
    return [f"group {e.group}" if e.group else f"row {e.example_id}" for e in rows]


def _of_likelihood(
    metrics: Mapping[str, float], found: Mapping[str, Measured]
) -> dict[str, Measured]:
    nll = found.get("eval/nll")
    if nll is None or not math.isfinite(nll.low):
        return {}
    more = {}
    if "eval/perplexity" in metrics:
        value = metrics["eval/perplexity"]
        more["eval/perplexity"] = _as(nll, value, perplexity)
    if "eval/bpb" in metrics and nll.value:
        per_nat = metrics["eval/bpb"] / nll.value
        more["eval/bpb"] = _as(nll, metrics["eval/bpb"], lambda nats: nats * per_nat)
    return more


def _as(nll: Measured, value: float, unit: Callable[[float], float]) -> Measured:
    return Measured(value, unit(nll.low), unit(nll.high), nll.n, nll.clusters)


def _of_classes(
    metrics: Mapping[str, float], rows: Sequence[Example], section: EvaluationSection
) -> dict[str, Measured]:
    tags = [tag for tag in metrics if tag.split("/")[1:2] and tag.split("/")[1] in _OF_CLASSES]
    answered = [e for e in rows if e.answers and e.expected is not None]
    if not (answered and (tags or "eval/class_accuracy" in metrics)):
        return {}
    predicted, expected = classes(_scored(answered, section))
    clusters = _clusters(answered)
    found = {}
    if "eval/class_accuracy" in metrics:
        right = [float(p == e) for p, e in zip(predicted, expected, strict=True)]
        found["eval/class_accuracy"] = mean_of(right, clusters=clusters, share=True)
    names = sorted(set(expected))
    counts = _counts(predicted, expected, names, clusters)
    for tag in tags:
        statistic = _statistic(tag, names)
        if statistic is not None:
            found[tag] = bootstrap(metrics[tag], counts, statistic, n=len(answered))
    return found


def _scored(rows: Sequence[Example], section: EvaluationSection) -> list[Scored]:
    scoring = Scoring(section)
    return [
        Scored(
            Question(e.example_id, "", e.expected or "", e.group),
            e.answers,
            scoring.counting(e.expected or ""),
            [scoring.counting(text) for text in e.answers],
        )
        for e in rows
    ]


def _counts(
    predicted: Sequence[str | None],
    expected: Sequence[str],
    names: Sequence[str],
    clusters: Sequence[str],
) -> Floats:
    """(clusters, classes, 3): right, expected, answered."""
    groups = numbered(clusters)
    counts = np.zeros((int(groups.max()) + 1, len(names), 3))
    at = {name: i for i, name in enumerate(names)}
    for group, p, e in zip(groups, predicted, expected, strict=True):
        counts[group, at[e], 1] += 1
        if p is not None:
            counts[group, at[p], 2] += 1
            counts[group, at[p], 0] += p == e
    return counts


def _statistic(tag: str, names: Sequence[str]) -> Callable[[Floats], Floats] | None:
    """Of counts summed over the rows, an array of (draws, classes, 3)."""
    _, kind, *rest = tag.split("/", 2)
    if kind == "f1_macro":
        return lambda counts: np.asarray(np.nanmean(_f1(counts), axis=1))
    if not rest or rest[0] not in names:
        return None
    at = names.index(rest[0])
    if kind == "f1":
        return lambda counts: _f1(counts)[:, at]
    of = 2 if kind == "precision" else 1
    return lambda counts: _ratio(counts[:, at, 0], counts[:, at, of])


def _f1(counts: Floats) -> Floats:
    return _ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def _ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where nothing is there to be a part of."""
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def examples_of(table: Any) -> list[Example]:
    """The rows of `read_evaluations`."""
    return [
        Example(
            row["example_id"],
            row["nll"],
            row["tokens"] or 0,
            row["correct"],
            row["text"],
            row["group"],
            row["expected"],
            row["answers"] or (),
            dict(row["scores"] or ()),
        )
        for row in table.to_pylist()
    ]
