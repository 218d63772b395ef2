"""The ranking of a sweep's configurations, from its state alone.

A configuration is ranked by the mean over its seeds of the objective. It competes for best only
when it is complete: every seed that the sweep asks for is done. What is not complete is listed
behind, with what is missing; a failed trial is never first. A value is that of the last step, or
with `search.at = "best"` of the best evaluated step that has a checkpoint.

As soon as no leader lacks fresh seeds to count as confirmed (`search.confirm`), those that were
confirmed come first, by the mean over their fresh seeds alone: those had no part in choosing them.
Where some have run more of them than others, what the seeds do to all alike is taken out
(`_paired_keys`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.metrics import Direction, objective
from crucible_tinkex.registry import (
    CONFIRM,
    DONE,
    FAIL_FAST,
    FAILED,
    LOST,
    RUNNING,
    SEARCH,
    TERMINAL,
    SweepState,
    TrialRecord,
)


@dataclass(frozen=True)
class Objective:
    """The metric that ranks, which way, and at which step."""

    metric: str
    direction: Direction
    at: str = "final"

    @classmethod
    def of(cls, state: SweepState) -> Objective:
        search = state.meta["experiment"]["search"]
        direction = search.get("direction") or objective(search["metric"]).direction or "min"
        return cls(search["metric"], direction, search.get("at", "final"))

    @classmethod
    def asked(cls, experiment: Experiment) -> Objective:
        search = experiment.search
        return cls(search.metric, search.objective_direction, search.at)

    def __str__(self) -> str:
        step = "last step" if self.at == "final" else "best step with a checkpoint"
        return f"{self.metric} ({self.direction}, {step})"

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "min" else -1.0

    def key(self, value: float | None) -> float:
        """Sorts the best first; what was not measured, last."""
        if value is None or math.isnan(value):
            return math.inf
        return self.sign * value

    def loss(self, trial: TrialRecord, step: int) -> float:
        """At a step with a result, lower being better; infinite where that has no number."""
        return self.key(trial.results[step].get(self.metric))

    def step(self, trial: TrialRecord) -> int | None:
        """The step whose value counts; None if there is none yet."""
        if self.at == "final":
            return trial.metrics_step if trial.metrics else None
        saved = {c.step for c in trial.checkpoints} | ({0} if trial.reference else set())
        steps = [s for s, m in trial.results.items() if self.metric in m and s in saved]
        return min(steps, key=lambda s: self.loss(trial, s), default=None)

    def metrics(self, trial: TrialRecord) -> Mapping[str, float]:
        """All metrics at the step that counts."""
        step = self.step(trial)
        if step is None:
            return {}
        return trial.results.get(step, trial.metrics)

    def value(self, trial: TrialRecord) -> float | None:
        return self.metrics(trial).get(self.metric)


@dataclass(frozen=True)
class Configuration:
    """One point of the search with all its seeds, as they are when it is asked first."""

    values: Mapping[str, Any]
    trials: Sequence[TrialRecord]
    objective: Objective
    missing_seeds: Sequence[int]
    """Asked for and not done."""
    reference: bool = False
    phase: str = SEARCH
    """The seeds that count: those of the search, or of the confirmation."""

    @property
    def counted(self) -> list[TrialRecord]:
        """The trials of the phase that counts."""
        return [t for t in self.trials if t.phase == self.phase]

    @cached_property
    def done(self) -> list[TrialRecord]:
        return [t for t in self.counted if t.state == DONE]

    @property
    def forked(self) -> bool:
        """Whether it goes on from checkpoints of others."""
        origin = self.trials[0].origin
        return origin is not None and origin.warm

    @property
    def complete(self) -> bool:
        """Whether it may be called the best."""
        return not self.missing_seeds and self.mean is not None

    @property
    def state(self) -> str:
        """The one that all its trials have, or the one that matters most."""
        states = [t.state for t in self.trials]
        return next((s for s in (RUNNING, FAILED, LOST) if s in states), states[0])

    def metric(self, name: str) -> list[float]:
        """Of the seeds that are done, or, if none is, of those that were measured."""
        measured = [self.objective.metrics(t).get(name) for t in self.done or self.counted]
        return [v for v in measured if v is not None]

    @cached_property
    def mean(self) -> float | None:
        values = self.metric(self.objective.metric)
        return fmean(values) if values else None

    @property
    def means(self) -> dict[str, float]:
        """Of every metric of its best trial, over the seeds as `metric` has them."""
        names = self.objective.metrics(self.best_trial)
        return {name: fmean(values) for name in names if (values := self.metric(name))}

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for fewer than two, or one that diverged."""
        values = self.metric(self.objective.metric)
        is_known = len(values) > 1 and all(map(math.isfinite, values))
        return stdev(values) if is_known else None

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean over the seeds, of this configuration by itself and for
        one look; None where there is no spread. Comparing is the conclusion's matter."""
        if self.spread is None:
            return None
        from crucible_tinkex.bench.classical import half_width

        return half_width(self.spread, len(self.metric(self.objective.metric)))

    @property
    def best_trial(self) -> TrialRecord:
        return min(self.counted, key=lambda t: self.objective.key(self.objective.value(t)))


def configurations(state: SweepState, *, confirmed: bool = True) -> list[Configuration]:
    """The best first: confirmed ones, complete ones by their mean, then the others. Without
    `confirmed`: as the search alone has it."""
    objective = Objective.of(state)
    search = state.meta["experiment"]["search"]
    groups: dict[tuple[object, ...], list[TrialRecord]] = {}
    for trial in state.trials.values():
        groups.setdefault(_key(state, trial), []).append(trial)
    wanted = confirming_seeds(search) if confirmed else 0
    lacks = any(_lacks_fresh(group, wanted) for group in groups.values())
    wanted = 0 if lacks else wanted
    found = [_configuration(g, objective, search["seeds"], wanted) for g in groups.values()]
    keys = _paired_keys([c for c in found if c.phase == CONFIRM])

    def place(c: Configuration) -> tuple[object, ...]:
        key = keys.get(id(c), objective.key(c.mean))
        return not c.complete, c.phase != CONFIRM, key, c.trials[0].index

    return sorted(found, key=place)


def confirming_seeds(search: Mapping[str, Any]) -> int:
    """With so many fresh ones a configuration counts as confirmed."""
    asked = search.get("confirm", 0)
    return 2 if asked == "auto" else int(asked)


def _lacks_fresh(trials: Sequence[TrialRecord], wanted: int) -> bool:
    """Whether a configuration waits for fresh seeds before it can count as confirmed."""
    fresh = [t for t in trials if t.phase == CONFIRM]
    waits = any(t.state not in TERMINAL for t in fresh)
    return waits and sum(t.state == DONE for t in fresh) < wanted


def _paired_keys(confirmed: Sequence[Configuration]) -> dict[int, float]:
    """By identity, what sorts the best first: means less what the seeds of each add to all that
    have run them (least squares of configuration + seed). None where all have run the same."""
    cells = {
        id(c): {t.seed: c.objective.key(c.objective.value(t)) for t in c.done} for c in confirmed
    }
    cells = {i: values for i, values in cells.items() if all(map(math.isfinite, values.values()))}
    if len({frozenset(values) for values in cells.values()}) < 2:
        return {}
    import numpy as np

    from crucible_tinkex.bench.selection.spread import effects  # SciPy takes half a second

    seeds = sorted({seed for values in cells.values() for seed in values})
    means, _ = effects(np.array([[v.get(s, math.nan) for s in seeds] for v in cells.values()]))
    return dict(zip(cells, means[:, 0].tolist(), strict=True))


def placed_by_shared_seeds(found: Sequence[Configuration]) -> bool:
    """Whether a mean stands above a better one: of different seeds, where those that both have run
    say which configuration is better."""
    confirmed = [c for c in found if c.complete and c.phase == CONFIRM and not c.reference]
    keys = [c.objective.key(c.mean) for c in confirmed]
    return keys != sorted(keys)


def _key(state: SweepState, trial: TrialRecord) -> tuple[object, ...]:
    """Equal for trials that differ in the seed alone."""
    origin = trial.origin
    key = (trial.reference, *sorted(trial.values.items()))
    if origin is None or not origin.warm:
        return key
    parent = state.trials.get(origin.parent)
    return (*key, origin.step, origin.parent if parent is None else _key(state, parent))


def _configuration(
    trials: Sequence[TrialRecord], objective: Objective, seeds: Sequence[int], wanted: int
) -> Configuration:
    """`wanted`: seeds that a confirmed configuration has; 0 if none is confirmed."""
    first = trials[0]
    measured = [t for t in trials if t.state == DONE and objective.value(t) is not None]
    done = {t.seed for t in measured if t.phase == SEARCH}
    asked = [first.seed] if first.reference else seeds
    missing = [s for s in asked if s not in done]
    is_confirmed = 0 < wanted <= sum(t.phase == CONFIRM for t in measured)
    phase = CONFIRM if is_confirmed and not missing else SEARCH
    return Configuration(first.values, trials, objective, missing, first.reference, phase)


def best(state: SweepState) -> Configuration | None:
    """The complete configuration whose mean is best; None while there is none."""
    candidates = [c for c in configurations(state) if c.complete and not c.reference]
    return candidates[0] if candidates else None


def tied(state: SweepState, winner: Configuration) -> list[Configuration]:
    """Other complete configurations with exactly the winner's mean, over seeds of its phase."""
    standing = _standing(winner)
    return [
        c
        for c in configurations(state)
        if c.complete and not c.reference and c.values != winner.values and _standing(c) == standing
    ]


def _standing(found: Configuration) -> tuple[str, float | None]:
    """Equal for those of one place; means of the search are not those of fresh seeds."""
    return found.phase, found.mean


@dataclass(frozen=True)
class Place:
    """A place of the leaderboard, from 1; `shared` with others that have the same mean over seeds
    of the same phase."""

    number: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.number}{'=' if self.shared else ''}"


def places(rows: Sequence[Configuration]) -> list[Place | None]:
    """Of each of a leaderboard's rows; None for what does not compete."""
    competing = [_standing(c) for c in rows if c.complete and not c.reference]
    return [
        Place(competing.index(_standing(c)) + 1, competing.count(_standing(c)) > 1)
        if c.complete and not c.reference
        else None
        for c in rows
    ]


def ranked(state: SweepState) -> list[TrialRecord]:
    """All trials, in the order of their configurations, the best seed first."""
    objective = Objective.of(state)
    return [
        trial
        for configuration in configurations(state)
        for trial in sorted(
            configuration.trials, key=lambda t: (objective.key(objective.value(t)), t.index)
        )
    ]


def trials_left(state: SweepState, planned: int) -> int:
    """How many are still to be trained, at least: a confirmation and clones go beyond what was
    `planned`."""
    return max(len(state.open), planned - (len(state.trials) - len(state.open)))


def exit_code(state: SweepState) -> int:
    """0 all done or stopped in order, 1 some failed or were lost, or `run.fail_fast` gave up, 3 the
    budget is used up, 130 something is left to do."""
    if state.ended_by == "budget":
        return 3
    if state.ended_by == FAIL_FAST:
        return 1
    if state.open or (state.version != 1 and state.ended is None):
        return 130
    states = {t.state for t in state.trials.values()}
    return 1 if states & {FAILED, LOST} else 0
