"""Learning curves small enough for a page: evaluations from the journal, steps from the events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState

MOST_POINTS = 30_000
"""Of all curves of one metric together; at least `FEWEST` of each curve are kept."""
FEWEST = 12
DIGITS = 5
STEP_METRIC = "train/nll"

Curve = tuple[list[int], list[float]]


def curves(state: SweepState, paths: SweepPaths) -> dict[str, dict[str, Curve]]:
    """Metric to trial id to steps and values. What is not a number is left out."""
    found: dict[str, dict[str, Curve]] = {}
    for trial in state.trials.values():
        for step in sorted(trial.results):
            for name, value in trial.results[step].items():
                if name != STEP_METRIC and math.isfinite(value):
                    steps, values = found.setdefault(name, {}).setdefault(trial.trial_id, ([], []))
                    steps.append(step)
                    values.append(value)
    stepped = _stepped(paths)
    if stepped:
        found[STEP_METRIC] = stepped
    return {name: _thinned(by_trial) for name, by_trial in found.items()}


def _stepped(paths: SweepPaths) -> dict[str, Curve]:
    """Every step's training loss; nothing before the first event."""
    if not paths.events.is_dir():
        return {}
    from crucible_tinkex.telemetry.query import query

    rows = query(
        paths.events,
        "SELECT trial_id, list(step) AS steps, list(train_nll) AS losses FROM "
        "(SELECT * FROM steps WHERE train_nll IS NOT NULL ORDER BY trial_id, step) "
        "GROUP BY trial_id",
    ).to_pylist()
    return {r["trial_id"]: _finite(r["steps"], r["losses"]) for r in rows}


def _finite(steps: Sequence[int], values: Sequence[float]) -> Curve:
    kept = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    return [s for s, _ in kept], [v for _, v in kept]


def _thinned(by_trial: Mapping[str, Curve]) -> dict[str, Curve]:
    """Means over windows of neighbouring steps, where there are too many to draw."""
    room = max(FEWEST, MOST_POINTS // max(1, len(by_trial)))
    return {trial_id: _mean_windows(curve, room) for trial_id, curve in by_trial.items()}


def _mean_windows(curve: Curve, room: int) -> Curve:
    steps, values = curve
    window = -(-len(steps) // room) if steps else 1
    starts = range(0, len(steps), window)
    return (
        [steps[min(i + window, len(steps)) - 1] for i in starts],
        [rounded(sum(part) / len(part)) for part in (values[i : i + window] for i in starts)],
    )


def rounded(value: Any) -> Any:
    """As many digits as a plot can show."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
