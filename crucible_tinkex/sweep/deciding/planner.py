"""From an experiment to the plans of its trials: identities, names, numbers of steps.

A pure function of experiment and data, so that a sweep that is run again finds its own trials. A
trial's number (`index`) is its place in the order in which trials were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import DataFile
from crucible_tinkex.names import run_dir_name
from crucible_tinkex.registry import SEARCH, Origin, SweepState, TrialRecord
from crucible_tinkex.sweep.deciding.prices import Price
from crucible_tinkex.training.losses.registry import learning_functions
from crucible_tinkex.training.plan import TrialPlan, trial_identity


class TrainingData(NamedTuple):
    """What a trial's length and identity need of its rows."""

    rows: int
    """That an epoch shows."""
    fingerprint: str


class Planner:
    """Plans the trials of `experiment` over `rows` training rows. `sets`: where the search varies
    `data.train`, those of each of its values. `code`: the user's functions that any of them names,
    with the hashes of their source."""

    def __init__(
        self,
        experiment: Experiment,
        *,
        rows: int,
        fingerprint: str,
        sets: Mapping[tuple[DataFile, ...], TrainingData] | None = None,
        code: Mapping[str, str] | None = None,
        price: Price | None = None,
    ) -> None:
        self.experiment = experiment
        self._declared = TrainingData(rows, fingerprint)
        self._sets = sets or {}
        self._per_million = price.per_million if price else None
        self.code = code or {}
        self._plans: dict[str, TrialPlan] = {}

    @property
    def has_reference(self) -> bool:
        """Whether the untrained base is a trial, too."""
        return self.experiment.search.reference and self.experiment.data.evaluates

    @cached_property
    def reference(self) -> TrialPlan | None:
        """The untrained base, if it is one."""
        if not self.has_reference:
            return None
        return self.plan({}, self.experiment.search.seeds[0], reference=True)

    @property
    def steps(self) -> int:
        """Of a trial of the experiment as declared."""
        return self.experiment.train.steps(self._declared.rows)

    def plan(
        self,
        values: Mapping[str, Any],
        seed: int,
        *,
        index: int = 0,
        reference: bool = False,
        phase: str = SEARCH,
        origin: Origin | None = None,
    ) -> TrialPlan:
        """One configuration with one seed. `reference`: the untrained base model."""
        configured = self.experiment.configured(values)
        data = self._sets[configured.data.files] if self._sets else self._declared
        steps = 0 if reference else configured.train.steps(data.rows)
        learnt_by = () if reference else learning_functions(configured.train)
        code = {name: self.code[name] for name in learnt_by if name in self.code}
        return TrialPlan(
            trial_id=trial_identity(
                configured,
                seed,
                data.fingerprint,
                total_steps=steps,
                reference=reference,
                origin=origin,
                code=code,
            ),
            index=index,
            run_name=run_dir_name(index, values, seed, reference=reference),
            values=values,
            seed=seed,
            total_steps=steps,
            experiment=configured,
            reference=reference,
            phase=phase,
            origin=origin,
            per_million=self._per_million,
            code=code,
        )

    def of(self, trial: TrialRecord) -> TrialPlan:
        """The plan of a trial that was asked for, as the experiment is now; it keeps its name."""
        if trial.trial_id not in self._plans:
            plan = self.plan(
                trial.values,
                trial.seed,
                index=trial.index,
                reference=trial.reference,
                phase=trial.phase,
                origin=trial.origin,
            )
            self._plans[trial.trial_id] = replace(plan, run_name=trial.run_name)
        return self._plans[trial.trial_id]

    def forget(self, trial_id: str) -> None:
        """A trial has ended: its plan is made again if it is ever needed."""
        self._plans.pop(trial_id, None)


def numbered(planner: Planner, state: SweepState, plans: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The plans, numbered on from the trials that there are."""
    first = len(state.trials)
    return [
        planner.plan(p.values, p.seed, index=first + i, reference=p.reference)
        for i, p in enumerate(plans)
    ]


def usual_reason(planner: Planner, plan: TrialPlan) -> str:
    """Why a trial of the search is started where nothing more can be said."""
    if not plan.values:
        return "as declared"
    if plan.values in planner.experiment.search.enqueue:
        return "one of search.enqueue"
    return "the next configuration of the search"
