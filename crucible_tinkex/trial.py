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
from crucible_tinkex.names import digest, run_dir_name
from crucible_tinkex.registry import TrialRecord
from crucible_tinkex.search.strategies import configurations


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
        plans.append(
            _plan(experiment.configured({}), {}, experiment.search.seeds[0], 0, fingerprint, None)
        )
    for values in configurations(experiment):
        configured = experiment.configured(values)
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
    steps = 0 if rows is None else experiment.train.steps(rows)
    settings = experiment.trial_settings(total_steps=steps, reference=reference)
    return TrialPlan(
        trial_id=_identity(settings, seed, fingerprint),
        index=index,
        run_name=run_dir_name(index, values, seed),
        values=values,
        seed=seed,
        total_steps=steps,
        experiment=experiment,
        reference=reference,
    )


def _identity(plan_settings: Mapping[str, Any], seed: int, fingerprint: str) -> str:
    return digest({**plan_settings, "data": fingerprint, "seed": seed}, 12)
