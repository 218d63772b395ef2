"""The plan of a clone: a trial with other settings, from a checkpoint of its parent or from anew.

A warm clone (a fork) takes weights and optimizer state: the moments belong to the weights, without
them the first steps would be those of a cold start, and only so does a clone that changes nothing
repeat its parent exactly. It keeps the parent's seed, step counter and data order: its steps are
those after the checkpoint, on the rows that the parent would have seen. Everything that is not
changed is inherited. Nothing is decided here, and nothing remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible_tinkex.config import TrainSection, check_axes
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import CheckpointRecord, Origin, SweepState, TrialRecord
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.training.losses.objective import Objective
from crucible_tinkex.training.losses.registry import learning_functions
from crucible_tinkex.training.plan import TrialPlan


def clone_plan(
    state: SweepState,
    planner: Planner,
    parent: TrialRecord,
    changes: Mapping[str, Any],
    *,
    fresh: bool = False,
    at: int | None = None,
) -> TrialPlan:
    """`changes`: dotted keys; `at`: the newest checkpoint at or before this step. Raises
    `ConfigError` for what cannot be; a clone that exists already is planned again, by its id."""
    if parent.reference:
        raise ConfigError("the untrained base model cannot be cloned")
    check_axes(changes, where=f"clone of {parent.run_name}")
    if fresh and at is not None:
        raise ConfigError("a fresh clone begins at step 0: leave --at or --fresh out")
    origin = Origin(parent.trial_id) if fresh else _forked(parent, changes, at)
    values = {**parent.values, **changes}
    _check_learning(planner, planner.experiment.configured(values).train)
    plan = planner.plan(values, parent.seed, index=len(state.trials), origin=origin)
    unchanged = planner.of(parent).experiment
    if plan.trial_id == parent.trial_id or (origin.warm and plan.experiment == unchanged):
        raise ConfigError(f"clone of {parent.run_name}: nothing is changed; use --set key=value")
    if plan.total_steps <= origin.step:
        raise ConfigError(
            f"clone of {parent.run_name}: it would begin at step {origin.step} and end at "
            f"{plan.total_steps}; ask for more with --set train.max_steps, or take an earlier "
            "checkpoint with --at"
        )
    return plan


def _check_learning(planner: Planner, train: TrainSection) -> None:
    """Raises `ConfigError` for a loss that there is not, or whose source the sweep did not note."""
    Objective.of(train)
    for name in learning_functions(train):
        if name not in planner.code:
            raise ConfigError(
                f"clone: the sweep does not know {name} yet; let the search vary it "
                "(`crucible extend --set search.enqueue=...`)"
            )


def _forked(parent: TrialRecord, changes: Mapping[str, Any], at: int | None) -> Origin:
    shaped = [key for key in changes if key.startswith("lora.")]
    if shaped:
        raise ConfigError(
            f"clone of {parent.run_name}: {shaped[0]!r} shapes the adapter, whose weights a warm "
            "clone takes over; use --fresh"
        )
    found = _checkpoint(parent, at)
    return Origin(parent.trial_id, found.step, found.path)


def _checkpoint(parent: TrialRecord, at: int | None) -> CheckpointRecord:
    found = [c for c in parent.resumable() if at is None or c.step <= at]
    if not found:
        before = "" if at is None else f" at or before step {at}"
        raise ConfigError(
            f"clone of {parent.run_name}: it has no checkpoint{before} to go on from; use --fresh, "
            "or wait for one"
        )
    return found[0]
