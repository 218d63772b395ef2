"""From an experiment to its trials: every configuration with every seed, the reference first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import total_steps
from crucible_tinkex.names import run_dir_name
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.training.plan import TrialPlan, trial_identity


def plan_trials(experiment: Experiment, *, fingerprint: str, rows: int) -> list[TrialPlan]:
    """All trials of an experiment over `rows` training rows; the reference first."""
    plans: list[TrialPlan] = []
    if experiment.search.reference and experiment.data.eval is not None:
        plans.append(_plan(experiment, {}, experiment.search.seeds[0], 0, fingerprint, None))
    for values in configurations(experiment):
        configured = experiment.with_values(values)
        for seed in experiment.search.seeds:
            plans.append(_plan(configured, values, seed, len(plans), fingerprint, rows))
    return plans


def _plan(
    experiment: Experiment,
    values: Mapping[str, Any],
    seed: int,
    index: int,
    fingerprint: str,
    rows: int | None,
) -> TrialPlan:
    reference = rows is None
    return TrialPlan(
        trial_id=trial_identity(experiment, seed, fingerprint, reference=reference),
        index=index,
        run_name=run_dir_name(index, values, seed),
        values=values,
        seed=seed,
        total_steps=0 if rows is None else step_count(experiment, rows),
        experiment=experiment,
        reference=reference,
    )


def step_count(experiment: Experiment, rows: int) -> int:
    """Optimizer steps of one trial."""
    train = experiment.train
    steps = total_steps(rows, epochs=train.epochs, batch_size=train.batch_size)
    return min(steps, train.max_steps) if train.max_steps else steps
