"""A sweep's configurations as TensorBoard draws them: every metric over their seeds."""

from __future__ import annotations

import math

from crucible_tinkex.registry import DONE, SweepState
from crucible_tinkex.sweep.results.conclusion import configuration_names
from crucible_tinkex.sweep.results.leaderboard import Configuration, configurations
from crucible_tinkex.telemetry.tensorboard.configurations import Aggregate


def aggregates(state: SweepState) -> list[Aggregate]:
    """In the order of the leaderboard, without the untrained base; nothing of fewer than two seeds,
    which the trials' own runs show."""
    found = [c for c in configurations(state) if not c.reference]
    named = zip(configuration_names(found), found, strict=True)
    return [_aggregate(name, c) for name, c in named if len(c.trials) > 1]


def _aggregate(name: str, found: Configuration) -> Aggregate:
    metrics: dict[str, dict[int, list[float]]] = {}
    for trial in found.trials:
        for step, values in trial.results.items():
            for tag, value in values.items():
                if math.isfinite(value):
                    metrics.setdefault(tag, {}).setdefault(step, []).append(value)
    return Aggregate(name, _state(found), metrics)


def _state(found: Configuration) -> str:
    done = sum(t.state == DONE for t in found.trials)
    ends = {f"{t.state}: {t.error}" for t in found.trials if t.state != DONE and t.error}
    return "; ".join([f"{found.state}, {done} of {len(found.trials)} trials done", *sorted(ends)])
