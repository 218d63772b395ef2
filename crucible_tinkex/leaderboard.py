"""The ranking of a sweep's configurations, and the summary that `status --json` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from crucible_tinkex.metrics import objective
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, PENDING, RUNNING, SweepState, TrialRecord
from crucible_tinkex.storage import is_locked


@dataclass(frozen=True)
class Objective:
    """The metric that ranks, and which way."""

    metric: str
    direction: str

    @classmethod
    def of(cls, state: SweepState) -> Objective:
        search = state.meta["experiment"]["search"]
        direction = search["direction"] or objective(search["metric"]).direction
        return cls(search["metric"], direction or "min")

    def key(self, value: float | None) -> float:
        """Sorts the best first; what was not measured, last."""
        if value is None or math.isnan(value):
            return math.inf
        return value if self.direction == "min" else -value


def ranked(state: SweepState) -> list[TrialRecord]:
    """All trials, the best first."""
    objective = Objective.of(state)
    return sorted(
        state.trials.values(),
        key=lambda t: (objective.key(t.metrics.get(objective.metric)), t.index),
    )


def best(state: SweepState) -> TrialRecord | None:
    """The best trial of the configuration whose mean over its finished seeds is best."""
    objective = Objective.of(state)
    groups: dict[tuple[tuple[str, Any], ...], list[TrialRecord]] = {}
    for trial in state.trials.values():
        if trial.state == DONE and not trial.reference and objective.metric in trial.metrics:
            groups.setdefault(tuple(sorted(trial.values.items())), []).append(trial)
    if not groups:
        return None
    winner = min(groups.values(), key=lambda g: objective.key(_mean(g, objective.metric)))
    return min(winner, key=lambda t: objective.key(t.metrics[objective.metric]))


def _mean(trials: Sequence[TrialRecord], metric: str) -> float:
    return fmean(t.metrics[metric] for t in trials)


def sweep_state(state: SweepState, paths: SweepPaths) -> str:
    """running only while a live process owns the sweep."""
    if state.state in (RUNNING, PENDING) and not is_locked(paths.lock):
        return "interrupted"
    return state.state


def summary(state: SweepState, paths: SweepPaths) -> dict[str, Any]:
    """The object that `status --json` prints."""
    objective = Objective.of(state)
    winner = best(state)
    return {
        "sweep": paths.root.name,
        "state": sweep_state(state, paths),
        "metric": objective.metric,
        "direction": objective.direction,
        "trials": [trial_summary(t) for t in ranked(state)],
        "best": trial_summary(winner) if winner else None,
        "waiting": waits(state, paths),
        "spent": {"wall_seconds": round(state.wall_s, 1)},
    }


def waits(state: SweepState, paths: SweepPaths) -> dict[str, dict[str, Any]]:
    """What the service keeps trials waiting for, by trial id; nothing unless the sweep runs."""
    if sweep_state(state, paths) != RUNNING:
        return {}
    from crucible_tinkex.telemetry.query import waiting

    return waiting(paths.events)


def trial_summary(trial: TrialRecord) -> dict[str, Any]:
    return {
        "id": trial.trial_id,
        "name": trial.run_name,
        "state": trial.state,
        "reference": trial.reference,
        "seed": trial.seed,
        "config": trial.values,
        "step": trial.step,
        "total_steps": trial.total_steps,
        "metrics": finite(trial.metrics),
        "checkpoints": [{"step": c.step, "path": c.path} for c in trial.checkpoints],
        "attempts": trial.attempt,
        "error": trial.error,
    }


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is not a number becomes null."""
    return {k: v if math.isfinite(v) else None for k, v in metrics.items()}
