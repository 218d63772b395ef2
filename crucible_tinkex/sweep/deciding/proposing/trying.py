"""What a sweep has tried: its configurations with their trials, and what their results so far mean
to a search that learns.

Read off the journal's state, further on at every call. A trial that the experiment would not ask
for as it is now (another seed, another length under a decaying rate, a fork) is none of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean

from crucible_tinkex.registry import DONE, FAILED, LOST, TERMINAL, SweepState, TrialRecord
from crucible_tinkex.search.learned.learners import Told
from crucible_tinkex.search.points.dimensions import Places
from crucible_tinkex.search.points.space import Values, trial_settings
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.results.leaderboard import Objective


@dataclass
class TriedConfiguration:
    """One configuration; `trials` by seed."""

    values: Values
    trials: dict[int, TrialRecord] = field(default_factory=dict)


class Tried:
    """The configurations of one state, by their settings, in the order of asking."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._seeds = planner.experiment.search.seeds
        self._read = 0
        self.configurations: dict[object, TriedConfiguration] = {}
        self.settings: dict[str, object] = {}
        """Of each trial."""

    def read(self, state: SweepState) -> list[object]:
        """Take in the trials that came since the last time; the settings of what is new."""
        new = []
        for trial in islice(state.trials.values(), self._read, None):
            self._read += 1
            if trial.reference or trial.seed not in self._seeds:
                continue
            if self._planner.plan(trial.values, trial.seed).trial_id == trial.trial_id:
                settings = trial_settings(self._planner.experiment, trial.values)
                if settings not in self.configurations:
                    self.configurations[settings] = TriedConfiguration(trial.values)
                    new.append(settings)
                self.configurations[settings].trials[trial.seed] = trial
                self.settings[trial.trial_id] = settings
        return new

    def has(self, settings: object, seed: int) -> bool:
        """Whether the sweep has this trial, up to the noise of computed numbers."""
        found = self.configurations.get(settings)
        return found is not None and seed in found.trials


class Results:
    """What a search that learns is told of each configuration that stands in its space."""

    def __init__(self, objective: Objective, seeds: Sequence[int]) -> None:
        self._objective = objective
        self._seeds = seeds
        self._places: dict[object, Places] = {}
        self._told: dict[object, Told] = {}
        self._open: set[object] = set()

    def add(self, settings: object, places: Places) -> None:
        self._places[settings] = places
        self._open.add(settings)

    def told(self, tried: Tried, state: SweepState) -> Iterator[Told]:
        """In the order of asking. Only what is under way, or was the last time, is looked at."""
        reopened = {tried.settings[i] for i in state.open if i in tried.settings}
        for settings in self._open | (reopened & self._places.keys()):
            trials = tried.configurations[settings].trials
            told = told_of(trials, self._places[settings], self._objective, self._seeds)
            self._told[settings] = told
            if told.ended:
                self._open.discard(settings)
            else:
                self._open.add(settings)
        return (self._told[settings] for settings in self._places)


def told_of(
    trials: Mapping[int, TrialRecord], places: Places, objective: Objective, seeds: Sequence[int]
) -> Told:
    """Of one configuration: the mean over its seeds, once all have ended; until then, and where a
    rule stopped one of them, the mean where the one that is least far stands."""
    found = list(trials.values())
    ended = len(found) == len(seeds) and all(t.state in TERMINAL and t.state != LOST for t in found)
    done = [t for t in found if t.state == DONE]
    if ended and len(done) + sum(t.state == FAILED for t in found) == len(found):
        losses = [loss_until(t, objective, math.inf) for t in done]
        return Told(places, fmean(losses) if losses else math.inf, ended=True)
    steps = [max(t.results) for t in found if t.results]
    if not steps:
        return Told(places, ended=ended)
    step = min(steps)
    losses = [loss_until(t, objective, step) for t in found if t.results]
    return Told(places, fmean(losses), step, ended)


def loss_until(trial: TrialRecord, objective: Objective, until: float) -> float:
    """The objective by the results up to a step, lower being better; infinite without one."""
    losses = [objective.loss(trial, step) for step in sorted(trial.results) if step <= until]
    if not losses:
        return math.inf
    return min(losses) if objective.at == "best" else losses[-1]
