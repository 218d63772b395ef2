"""What training, evaluating and sampling give back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import Direction, direction_of
from crucible_tinkex.training.recipes.recipe import Example

StepRow = dict[str, Any]
"""`step`, `epoch` (from 1), `loss` (mean, in nats per weight of the learnt tokens), `loss_sum`,
`weight` (of those tokens), `grad_norm` (None where the service does not tell), `learning_rate`,
`tokens`, `seconds`, `timestamp` (ISO 8601, UTC), `metrics`, and where they were asked for
`citation_invalid_rate` and `gradients`."""


@dataclass(frozen=True)
class Checkpoint:
    """Saved weights. `path` is the service's word: the original made paths up, and could load
    nothing afterwards."""

    name: str
    step: int
    path: str
    """Weights and optimizer: training goes on from it."""
    sampler_path: str | None
    """The weights for sampling; None where they were not asked for."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """What `train` did."""

    results: Sequence[StepRow]
    """One row per step, in order."""
    metrics: Mapping[str, Any]
    """Of `calculate_metrics`."""
    checkpoints: Sequence[Checkpoint]
    """Saved by this call, the last at its last step."""
    final_metrics: Mapping[str, float]
    """Means over the last steps, and the newest evaluation."""
    best_metric: str
    trace_id: str

    @property
    def best_checkpoint(self) -> Checkpoint | None:
        return best(self.checkpoints, self.best_metric)


@dataclass(frozen=True)
class EvaluationResult:
    """Held-out metrics, and the rows behind them."""

    experiment_id: str
    adapter_name: str
    metrics: Mapping[str, float]
    samples: Sequence[Example]
    checkpoint: str | None = None
    evaluated_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


@dataclass(frozen=True)
class Completion:
    """One sample of one prompt."""

    prompt: str
    text: str
    tokens: Sequence[int]
    logprobs: Sequence[float] | None
    stop_reason: str


def best(checkpoints: Sequence[Checkpoint], metric: str) -> Checkpoint | None:
    """The best by `metric`; see `best_first`."""
    return next(iter(best_first(checkpoints, metric)), None)


def best_first(
    checkpoints: Sequence[Checkpoint], metric: str, direction: Direction | None = None
) -> list[Checkpoint]:
    """Those with a finite value of `metric`, of equals the older first; by default in the metric's
    own direction. Raises `ConfigError` for a direction that is none."""
    if direction not in (None, "min", "max"):
        raise ConfigError(f"direction {direction!r} must be 'min' or 'max'")
    sign = -1.0 if (direction or direction_of(metric)) == "max" else 1.0
    measured = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    return sorted(measured, key=lambda c: sign * c.metrics[metric])
