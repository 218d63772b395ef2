"""A trial: one configuration with one seed, and everything a session must know to run it.

The identity is a hash of what decides the numbers (model, adapter, optimizer, data, training,
seed), so asking for the same trial twice runs it once, and a sweep that is run again finds its own
trials. What only decides how often something is saved or sent is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import total_steps
from crucible_tinkex.names import digest, run_dir_name
from crucible_tinkex.registry import TrialRecord
from crucible_tinkex.search.strategies import configurations

_NO_PART = {"checkpoint_every", "submit_ahead"}


@dataclass(frozen=True)
class TrialPlan:
    """What crosses to a session: no secret, nothing that changes. Picklable."""

    trial_id: str
    index: int
    run_name: str
    values: Mapping[str, Any]
    seed: int
    total_steps: int
    experiment: Experiment
    """The experiment with `values` applied."""
    reference: bool = False
    """The untrained base model, evaluated to compare with."""

    def record(self) -> TrialRecord:
        return TrialRecord(
            trial_id=self.trial_id,
            index=self.index,
            run_name=self.run_name,
            values=dict(self.values),
            seed=self.seed,
            total_steps=self.total_steps,
            reference=self.reference,
        )


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
        trial_id=_identity(experiment, seed, fingerprint, reference=reference),
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


def _identity(experiment: Experiment, seed: int, fingerprint: str, *, reference: bool) -> str:
    content = {
        "model": experiment.model.model_dump(exclude_none=True),
        "lora": experiment.lora.model_dump(mode="json"),
        "optimizer": experiment.optimizer.model_dump(),
        "train": experiment.train.model_dump(exclude=_NO_PART),
        "evaluation": experiment.evaluation.model_dump(),
        "data": fingerprint,
        "seed": seed,
        "reference": reference,
    }
    return digest(content, 12)
