"""Metrics over a training's rows, and whether results meet the targets that were set.

The original's `calculate_metrics` gave other keys for no steps than for some, raised where a row
lacked `citation_invalid_rate`, and compared sums over batches of unequal size; its targets counted
what was not measured as 0 and asked `>=` of every metric, so that any rate of invalid citations
passed. Here a loss is a mean per weight, a target has a direction, and what was not measured is
neither met nor missed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import CATALOGUE

DEFAULT_TARGETS: Mapping[str, float] = {
    "schema_compliance": 0.95,
    "citation_accuracy": 0.95,
    "mean_entailment": 0.50,
    "overall_pass_rate": 0.45,
}
_LOWER_IS_BETTER = ("loss", "nll", "perplexity", "citation_invalid_rate", "convergence_steps")
_HIGHER_IS_BETTER = ("loss_reduction", "loss_reduction_fraction")


def calculate_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Always the same keys; None where there is nothing to tell.

    `loss_reduction` is the first loss less the last (the original's), `loss_reduction_fraction` its
    share of the first (what a target such as 0.95 means).
    """
    losses = [float(row["loss"]) for row in results if row.get("loss") is not None]
    invalid = [row["citation_invalid_rate"] for row in results if "citation_invalid_rate" in row]
    reduction = losses[0] - losses[-1] if losses else None
    return {
        "mean_loss": statistics.fmean(losses) if losses else None,
        "loss_reduction": reduction,
        "loss_reduction_fraction": (
            reduction / losses[0] if reduction is not None and losses[0] else None
        ),
        "mean_citation_invalid_rate": statistics.fmean(invalid) if invalid else None,
        "total_steps": len(results),
        "min_loss": min(losses, default=None),
        "max_loss": max(losses, default=None),
        "final_loss": losses[-1] if losses else None,
    }


def validate_quality(
    results: Mapping[str, Any], targets: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`passed`, `assessments` and `summary`. A target is a number, or `{target, direction}`.

    `passed` is True if every target was measured and met, False if one was missed, else None.
    """
    assessments = [
        _assess(metric, target, results.get(metric))
        for metric, target in (DEFAULT_TARGETS if targets is None else targets).items()
    ]
    met = [a for a in assessments if a["passed"] is True]
    missed = [a["metric"] for a in assessments if a["passed"] is False]
    unknown = [a["metric"] for a in assessments if a["passed"] is None]
    summary = f"{len(met)}/{len(assessments)} quality targets met"
    summary += f"; missed: {', '.join(missed)}" if missed else ""
    summary += f"; not measured: {', '.join(unknown)}" if unknown else ""
    return {
        "passed": False if missed else (None if unknown else True),
        "assessments": assessments,
        "summary": summary,
    }


def _assess(metric: str, given: Any, actual: Any) -> dict[str, Any]:
    spec = given if isinstance(given, Mapping) else {"target": given}
    target, direction = spec.get("target"), spec.get("direction") or direction_of(metric)
    if not isinstance(target, int | float) or isinstance(target, bool):
        raise ConfigError(f"quality target {metric!r}: {target!r} is not a number")
    if direction not in ("min", "max"):
        raise ConfigError(f"quality target {metric!r}: direction is 'min' or 'max'")
    told = {"metric": metric, "target": target, "direction": direction, "actual": actual}
    if not isinstance(actual, int | float) or math.isnan(actual):
        return {**told, "actual": None, "passed": None, "delta": None}
    passed = actual >= target if direction == "max" else actual <= target
    return {**told, "passed": passed, "delta": round(float(actual) - target, 4)}


def direction_of(metric: str) -> str:
    """`min` or `max`: the catalogue's where it knows the metric, else by the name."""
    known = CATALOGUE.get(metric)
    if known is not None and known.direction is not None:
        return known.direction
    if metric in _HIGHER_IS_BETTER:
        return "max"
    last = metric.rpartition("/")[2]
    return "min" if any(last == w or last.endswith(f"_{w}") for w in _LOWER_IS_BETTER) else "max"
