"""Metrics over a training's rows, and whether results meet the targets that were set.

The original's `calculate_metrics` gave other keys for no steps than for some, raised where a row
lacked `citation_invalid_rate`, and compared sums over batches of unequal size; its targets counted
what was not measured as 0 and asked `>=` of every metric, so that any rate of invalid citations
passed. Here a loss is a mean per weight, a target has a direction, and what was not measured is
neither met nor missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from crucible_tinkex.config.sweep.quality import SEED_TARGETS, TRAINING_TARGETS, QualitySection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import direction_of
from crucible_tinkex.scoring.quality import (
    MET,
    MISSED,
    NOT_SETTLED,
    UNMEASURED,
    Assessment,
    assess,
)
from crucible_tinkex.training.progress import progress


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
    """`passed`, `assessments` and `summary`. A target is a number, or `{target, direction, min_n}`;
    a result is a number, or `{value, low, high, n}`, which is judged on its interval as a sweep's
    `[quality]` is.

    `passed` is True if every target was met, False if one was missed, else None.
    """
    found = [
        _assess(metric, target, results.get(metric))
        for metric, target in (SEED_TARGETS if targets is None else targets).items()
    ]
    named = {status: [a.metric for a in found if a.status == status] for status in _UNMET}
    summary = f"{sum(a.status == MET for a in found)}/{len(found)} quality targets met"
    for status, words in _UNMET.items():
        summary += f"; {words}: {', '.join(named[status])}" if named[status] else ""
    open_ = named[UNMEASURED] or named[NOT_SETTLED]
    return {
        "passed": False if named[MISSED] else (None if open_ else True),
        "assessments": [_told(a) for a in found],
        "summary": summary,
    }


def validate_training(
    rows: Sequence[Mapping[str, Any]], targets: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """As `validate_quality`, on the rows of a training (`step`, `loss`), by default against the
    seed's targets: `loss_reduction` (a share, with its interval), `convergence_steps` (both of
    `training.progress`) and `citation_invalid_rate`, over all rows that were trained on, and so
    exact."""
    numbered = [(row.get("step", i), row["loss"]) for i, row in enumerate(rows, 1) if "loss" in row]
    found: dict[str, Any] = {
        name: asdict(value)
        for name, value in progress([s for s, _ in numbered], [x for _, x in numbered]).items()
    }
    found["citation_invalid_rate"] = calculate_metrics(rows)["mean_citation_invalid_rate"]
    if targets is None:
        known = QualitySection(targets=dict(TRAINING_TARGETS)).resolved
        targets = {name: target.model_dump() for name, target in known.items()}
    return validate_quality(found, targets)


Verdict = Literal["ok", "warn", "fail"]
Found = Callable[[Mapping[str, Any]], object]


def monitor_callback(
    targets: Mapping[str, Any] | None = None,
    *,
    warn_threshold: float = 0.1,
    on_warning: Found | None = None,
    on_failure: Found | None = None,
) -> Callable[[int, Mapping[str, Any]], Verdict]:
    """For `on_evaluation` of `train`, which ends on `fail`: `ok` where no target is missed, `warn`
    where all that are missed are so by at most `warn_threshold` of the target, else `fail`.

    The callbacks get the assessment of each target that is missed. The original said `warn` as soon
    as one miss was near, however far another was."""

    def monitor(step: int, results: Mapping[str, Any]) -> Verdict:
        found = validate_quality(results, targets)["assessments"]
        missed = [a for a in found if a["status"] == MISSED]
        far = [a for a in missed if abs(a["delta"]) > warn_threshold * abs(a["target"])]
        for assessment in missed:
            heard = on_failure if assessment in far else on_warning
            if heard is not None:
                heard({**assessment, "step": step})
        return "fail" if far else "warn" if missed else "ok"

    return monitor


_UNMET = {MISSED: "missed", UNMEASURED: "not measured", NOT_SETTLED: "not settled"}
_PASSED = {MET: True, MISSED: False}


def _assess(metric: str, given: Any, actual: Any) -> Assessment:
    spec = given if isinstance(given, Mapping) else {"target": given}
    target, direction = spec.get("target"), spec.get("direction") or direction_of(metric)
    if not isinstance(target, int | float) or isinstance(target, bool):
        raise ConfigError(f"quality target {metric!r}: {target!r} is not a number")
    if direction not in ("min", "max"):
        raise ConfigError(f"quality target {metric!r}: direction is 'min' or 'max'")
    found = actual if isinstance(actual, Mapping) else {"value": actual}
    bounds = {n: found[n] for n in ("value", "low", "high") if _is_number(found.get(n))}
    min_n = spec.get("min_n", 1)
    return assess(metric, target, direction, **bounds, n=found.get("n"), min_n=min_n)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _told(found: Assessment) -> dict[str, Any]:
    delta = None if found.value is None else round(float(found.value) - found.target, 4)
    return {
        "metric": found.metric,
        "target": found.target,
        "direction": found.direction,
        "actual": found.value,
        "passed": _PASSED.get(found.status),
        "delta": delta,
        "status": found.status,
    }
