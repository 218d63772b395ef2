"""Trials of configurations that are chosen by the results so far.

`trying` says what the results mean, `search.learning` what comes next. Nothing is kept that the
state would not give again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from crucible_tinkex.registry import SweepState, TrialRecord
from crucible_tinkex.search.learned.learners import SLOW, Told
from crucible_tinkex.search.learned.learning import LearningSearch
from crucible_tinkex.search.points.dimensions import Places
from crucible_tinkex.search.points.space import Values
from crucible_tinkex.sweep.deciding.planner import Planner, numbered, usual_reason
from crucible_tinkex.sweep.deciding.proposing.trying import Results, Tried
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.training.plan import TrialPlan


class LearnedTrials:
    """Trials of configurations that are chosen by the results so far (tpe, gp, cmaes)."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._search = LearningSearch(planner.experiment)
        self._seeds = planner.experiment.search.seeds
        self._state: SweepState | None = None

    @property
    def planned(self) -> int:
        return self._search.total * len(self._seeds) + self._planner.has_reference

    def more(self, state: SweepState) -> bool:
        self._read(state)
        wanted = self._reference(state) or self._lacking
        return bool(wanted) or (self._number < self._search.total and self._has_new(state))

    def _has_new(self, state: SweepState) -> bool:
        return self._number != self._dry

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        self._read(state)
        return numbered(self._planner, state, list(islice(self._plans(state), count)))

    def why(self, plan: TrialPlan) -> str:
        return usual_reason(self._planner, plan)

    def promise(self, state: SweepState, trial: TrialRecord) -> float | None:
        return None

    def again(self, state: SweepState) -> list[TrialRecord]:
        return []

    @property
    def is_slow(self) -> bool:
        return self._planner.experiment.search.strategy in SLOW

    def _read(self, state: SweepState) -> None:
        if state is not self._state:
            self._state, self._tried = state, Tried(self._planner)
            objective = Objective.asked(self._planner.experiment)
            self._results = Results(objective, self._seeds)
            self._number = 0  # of configurations that belong to the search
            self._dry = -1  # the number after which the space has no other
            self._lacking: dict[object, None] = {}
            self._places: dict[object, Places] = {}  # of those that stand in the space
        for settings in self._tried.read(state):
            values = self._tried.configurations[settings].values
            places = self._search.places(values)
            if places is not None:
                self._places[settings] = places
                self._results.add(settings, places)
            if places is not None or self._search.is_guess(settings):
                self._number += 1
                self._lacking[settings] = None
        for settings in list(self._lacking):
            if len(self._tried.configurations[settings].trials) == len(self._seeds):
                del self._lacking[settings]

    def _plans(self, state: SweepState) -> Iterator[TrialPlan]:
        if reference := self._reference(state):
            yield reference
        for settings in list(self._lacking):
            found = self._tried.configurations[settings]
            missing = (seed for seed in self._seeds if seed not in found.trials)
            yield from (self._planner.plan(found.values, seed) for seed in missing)
        for values in self._chosen(state):
            yield from (self._planner.plan(values, seed) for seed in self._seeds)

    def _chosen(self, state: SweepState) -> Iterator[Values]:
        """New configurations, each as if those before were under way."""
        told = list(self._results.told(self._tried, state))
        known = set(self._tried.configurations)
        for number in range(self._number, self._search.total):
            values = self._search.next(told, known=known, number=number)
            if values is None:
                self._dry = number
                return
            known.add(self._search.settings(values))
            if (places := self._search.places(values)) is not None:
                told.append(Told(places))
            yield values

    def _reference(self, state: SweepState) -> TrialPlan | None:
        """If it is asked for and not there yet."""
        found = self._planner.reference
        return found if found and found.trial_id not in state.trials else None
