"""Trials of strategy `auto`: guesses and spread points, then the neighbours of the best.

What is measured at the first rung and at the end is read off the state; where to look next is
`search.auto`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from crucible_tinkex.registry import DONE, PAUSED, TERMINAL, SweepState, TrialRecord
from crucible_tinkex.search.auto import KEEP, Look, expected, next_places
from crucible_tinkex.search.points.space import Values
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.proposing.learned import LearnedTrials
from crucible_tinkex.sweep.deciding.proposing.trying import TriedConfiguration, loss_until
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.training.plan import TrialPlan


@dataclass(frozen=True)
class _Refinement:
    """New configurations beside what was measured; see `search.auto.Next`."""

    values: tuple[Values, ...]
    waits: bool
    reason: str


class ClimbingTrials(LearnedTrials):
    """Fewer than `search.trials` where the best has no neighbour left."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(planner)
        search = planner.experiment.search
        self._objective = Objective.asked(planner.experiment)
        rule = stopping_rule(search)
        self._rung = cache(lambda total_steps: rule.rungs(total_steps)[0])
        keep = search.stopping.keep if "topk" in search.stopping.rules else KEEP * len(self._seeds)
        self._keep = max(1, (keep if isinstance(keep, int) else keep[0]) // len(self._seeds))
        self._seen: tuple[object, dict[object, tuple[object, Look]]] = None, {}
        self._found: _Refinement | None = None

    def why(self, plan: TrialPlan) -> str:
        usual = super().why(plan)
        if plan.values in self._planner.experiment.search.enqueue:
            return f"{usual}, suggested by earlier sweeps"
        found = self._found
        return found.reason if found and plan.values in found.values else usual

    def promise(self, state: SweepState, trial: TrialRecord) -> float | None:
        """Infinite for a trial that is not of the search's configurations."""
        self._read(state)
        looks = self._looks()
        own = looks.get(self._tried.settings.get(trial.trial_id))
        if own is None or own.early is None:
            return math.inf
        return expected(own.places, own.early, list(looks.values()), self._search.neighbourhood)

    def _has_new(self, state: SweepState) -> bool:
        if self._number < self._search.startup and self._number != self._dry:
            return True
        found = self._refinement()
        return found.waits or bool(found.values)

    def _chosen(self, state: SweepState) -> Iterator[Values]:
        known = set(self._tried.configurations)
        for number in range(self._number, self._search.startup):
            values = self._search.next_spread(known)
            if values is None:
                self._dry = number
                return
            known.add(self._search.settings(values))
            yield values
        if self._number >= self._search.startup:
            yield from self._refinement().values[: self._search.total - self._number]

    def _refinement(self) -> _Refinement:
        looks = self._looks()
        if self._found is None:
            self._found = self._beside(list(looks.values()), self._tried.configurations)
        return self._found

    def _looks(self) -> dict[object, Look]:
        """By settings. Made anew only when a trial came, was measured, or has ended."""
        tried = self._tried.configurations
        if self._seen[0] is not tried:
            self._seen, self._found = (tried, {}), None
        seen = self._seen[1]
        for settings, places in self._places.items():
            trials = tried[settings].trials.values()
            standing = [(t.state, t.hold, len(t.results)) for t in trials]
            if settings not in seen or seen[settings][0] != standing:
                seen[settings] = standing, self._look(tried[settings], places)
                self._found = None
        return {settings: look for settings, (_, look) in seen.items()}

    def _beside(self, looks: list[Look], known: Container[object]) -> _Refinement:
        """Where all neighbours of one are excluded, those of the next."""
        while True:
            found = next_places(looks, self._search.neighbourhood, keep=self._keep)
            new = (self._search.new_at(places, known) for places in found.places)
            values = tuple(v for v in new if v is not None)
            if values or not found.places:
                return _Refinement(values, found.waits, found.reason)
            looks = [*looks, *(Look(places) for places in found.places)]

    def _look(self, tried: TriedConfiguration, places: tuple[float, ...]) -> Look:
        trials = list(tried.trials.values())
        all_asked = len(trials) == len(self._seeds)
        early = [self._early(t) for t in trials]
        final = [loss_until(t, self._objective, math.inf) for t in trials if t.state == DONE]
        return Look(
            places,
            early=fmean(known) if all_asked and len(known := _known(early)) == len(early) else None,
            final=fmean(final) if all_asked and len(final) == len(trials) else None,
            open=any(t.state not in TERMINAL and not _is_held(t) for t in trials),
        )

    def _early(self, trial: TrialRecord) -> float | None:
        """At the first rung."""
        rung = self._rung(trial.total_steps)
        if not any(step >= rung for step in trial.results):
            return math.inf if trial.state in TERMINAL else None
        return loss_until(trial, self._objective, rung)


def _known(losses: list[float | None]) -> list[float]:
    return [loss for loss in losses if loss is not None]


def _is_held(trial: TrialRecord) -> bool:
    """Whether a person, or a budget, has paused it: nobody waits for that."""
    return trial.state == PAUSED and bool(trial.hold)
