"""Which trials are asked for next: configurations of the search, each with every seed.

Asking is a pure function of the experiment and the trials that the journal knows, so a resumed or
amended sweep asks only for what it does not have. All seeds of a configuration come together. Where
the configurations are known beforehand their order is that of the search; where the search learns,
`trying` says what the results so far mean, and `search.learning` what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from crucible_tinkex.registry import SweepState
from crucible_tinkex.search.learners import Told
from crucible_tinkex.search.learning import LearningSearch
from crucible_tinkex.search.space import Values, trial_settings
from crucible_tinkex.search.strategies import learns
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.trying import Results, Tried
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.training.plan import TrialPlan


class Asker(Protocol):
    """Where new trials come from."""

    @property
    def planned(self) -> int:
        """How many trials there will be in all, or at most."""
        ...

    def more(self, state: SweepState) -> bool:
        """Whether `ask` has another trial. Cheap: it is asked after every event."""
        ...

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        """At most `count` trials that the sweep does not have, numbered on from those it has."""
        ...


def trials_of(planner: Planner, configurations: Sequence[Values]) -> Asker:
    """The asker of the planner's experiment, whose known `configurations` are these."""
    if learns(planner.experiment):
        return LearnedTrials(planner)
    return ListedTrials(planner, configurations)


class ListedTrials:
    """Trials of configurations that are known beforehand (grid, list, random, qmc)."""

    def __init__(self, planner: Planner, configurations: Sequence[Values]) -> None:
        self._planner = planner
        self._configurations = configurations
        self._state: SweepState | None = None

    @property
    def planned(self) -> int:
        seeds = self._planner.experiment.search.seeds
        return len(self._configurations) * len(seeds) + self._planner.has_reference

    def _plans(self) -> Iterator[TrialPlan]:
        search = self._planner.experiment.search
        if self._planner.has_reference:
            yield self._planner.plan({}, search.seeds[0], reference=True)
        for values in self._configurations:
            for seed in search.seeds:
                yield self._planner.plan(values, seed)

    def more(self, state: SweepState) -> bool:
        return bool(self._fresh(state, 1))

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        return _numbered(self._planner, state, self._fresh(state, count))

    def _fresh(self, state: SweepState, count: int) -> list[TrialPlan]:
        if state is not self._state:
            self._state, self._tried = state, Tried(self._planner)
            self._rest = self._plans()
            self._offered: deque[TrialPlan] = deque()  # not yet seen in the journal
        self._tried.read(state)
        while self._offered and self._offered[0].trial_id in state.trials:
            self._offered.popleft()
        fresh = (p for p in self._rest if not self._has(state, p))
        self._offered += islice(fresh, max(0, count - len(self._offered)))
        return list(islice(self._offered, count))

    def _has(self, state: SweepState, plan: TrialPlan) -> bool:
        if plan.reference or plan.trial_id in state.trials:
            return plan.trial_id in state.trials
        settings = trial_settings(self._planner.experiment, plan.values)
        return self._tried.has(settings, plan.seed)


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
        is_left = self._number < self._search.total and self._number != self._dry
        return is_left or bool(self._lacking) or self._wants_reference(state)

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        self._read(state)
        return _numbered(self._planner, state, list(islice(self._plans(state), count)))

    def _read(self, state: SweepState) -> None:
        if state is not self._state:
            self._state, self._tried = state, Tried(self._planner)
            objective = Objective.asked(self._planner.experiment)
            self._results = Results(objective, self._seeds)
            self._number = 0  # of configurations that belong to the search
            self._dry = -1  # the number after which the space has no other
            self._lacking: dict[object, None] = {}
        for settings in self._tried.read(state):
            values = self._tried.configurations[settings].values
            places = self._search.places(values)
            if places is not None:
                self._results.add(settings, places)
            if places is not None or self._search.is_guess(settings):
                self._number += 1
                self._lacking[settings] = None
        for settings in list(self._lacking):
            if len(self._tried.configurations[settings].trials) == len(self._seeds):
                del self._lacking[settings]

    def _plans(self, state: SweepState) -> Iterator[TrialPlan]:
        if self._wants_reference(state):
            yield self._reference()
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

    def _wants_reference(self, state: SweepState) -> bool:
        return self._planner.has_reference and self._reference().trial_id not in state.trials

    def _reference(self) -> TrialPlan:
        return self._planner.plan({}, self._seeds[0], reference=True)


def _numbered(planner: Planner, state: SweepState, plans: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The plans, numbered on from the trials that there are."""
    first = len(state.trials)
    return [
        planner.plan(p.values, p.seed, index=first + i, reference=p.reference)
        for i, p in enumerate(plans)
    ]
