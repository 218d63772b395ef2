"""What `recorded_sweep` does, without a journal and twenty times faster: a sweep with one session.

The strategies and stopping rules are the product's own (`search.auto`, `search.stopping`, the draws
of `search.strategies`); what is repeated here is the sweep's book of who trains, waits and goes on
(`sweep.deciding.policy`), for a session, a seed and no faults. A test holds both to the same tokens
on every surface.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from benchmarks.recorded_grid import Ledger, Surface
from crucible_tinkex.config import Experiment
from crucible_tinkex.search.auto import Look, Next, beside_the_best, expected, first, next_places
from crucible_tinkex.search.learned.learning import LearningSearch
from crucible_tinkex.search.neighbourhood import Neighbourhood
from crucible_tinkex.search.points.dimensions import Places
from crucible_tinkex.search.points.space import Space
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.stopping import Standing, StoppingRule, Verdict
from crucible_tinkex.search.strategies import configurations

Drawn: TypeAlias = dict[object, list[int]]
"""Points in the order of a seed, by what decides it; kept for other surfaces and rules."""
ENDED = ("stopped", "done")


@dataclass(eq=False)
class Trial:
    number: int
    point: int
    bracket: int
    rungs: Sequence[int]
    target: int
    losses: dict[int, float] = field(default_factory=dict)
    """By step."""
    state: str = "waiting"
    """To train; then `parked` at a rung, `paused`, `stopped` or `done`."""

    @property
    def loss(self) -> float:
        return self.losses[self.target]


class Source(Protocol):
    """Where points come from."""

    def next(self, trials: Sequence[Trial]) -> int | None:
        """The next point; None where there is none now."""
        ...

    def more(self, trials: Sequence[Trial]) -> bool:
        """Whether there is one, or may be."""
        ...

    def promise(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        """As the product's `Asker.promise`."""
        ...

    def again(self, trials: Sequence[Trial]) -> list[Trial]:
        """As the product's `Asker.again`."""
        ...


class Listed:
    """Points in an order that is known."""

    def __init__(self, points: Sequence[int]) -> None:
        self._points = points

    def next(self, trials: Sequence[Trial]) -> int | None:
        return self._points[len(trials)] if self.more(trials) else None

    def more(self, trials: Sequence[Trial]) -> bool:
        return len(trials) < len(self._points)

    def promise(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        return None

    def again(self, trials: Sequence[Trial]) -> list[Trial]:
        return []


class Climbing:
    """Points of strategy `auto`. `begin`: the first ones; `places`: of every point."""

    def __init__(
        self,
        begin: Sequence[int],
        places: Sequence[Places],
        around: Neighbourhood,
        *,
        rung: int,
        keep: int,
        most: int,
    ) -> None:
        self._begin, self._places, self._around = begin, places, around
        self._at = {_rounded(p): i for i, p in enumerate(places)}
        self._rung, self._keep, self._most = rung, keep, most
        self._last: tuple[list[tuple[bool, int]], Next] | None = None

    def next(self, trials: Sequence[Trial]) -> int | None:
        if len(trials) < len(self._begin):
            return self._begin[len(trials)]
        found = self._found(trials).places
        return self._at[_rounded(found[0])] if found and len(trials) < self._most else None

    def more(self, trials: Sequence[Trial]) -> bool:
        if len(trials) < len(self._begin):
            return True
        if len(trials) >= self._most:
            return False
        found = self._found(trials)
        return found.waits or bool(found.places)

    def _found(self, trials: Sequence[Trial]) -> Next:
        """Looked for anew when a trial came, was measured or ended."""
        standing = [(t.state in ENDED, len(t.losses)) for t in trials]
        if self._last is None or self._last[0] != standing:
            found = next_places(self._looks(trials), self._around, keep=self._keep)
            self._last = standing, found
        return self._last[1]

    def promise(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        early = trial.losses[self._rung]
        looks = self._looks(trials)
        return expected(self._places[trial.point], early, looks, self._around)

    def again(self, trials: Sequence[Trial]) -> list[Trial]:
        at = {self._places[t.point]: t for t in trials}
        found = [at[k.places] for k in beside_the_best(self._looks(trials), self._around)]
        return [t for t in found if t.target == self._rung]

    def _looks(self, trials: Sequence[Trial]) -> list[Look]:
        return [
            Look(
                self._places[t.point],
                t.losses.get(self._rung),
                t.loss if t.state == "done" else None,
                t.state not in ENDED,
            )
            for t in trials
        ]


class Play:
    """One sweep. `enough`: when to end before its end."""

    def __init__(self, rule: StoppingRule, source: Source, ledger: Ledger) -> None:
        self._rule, self._source, self._ledger = rule, source, ledger
        self._trials: list[Trial] = []
        self._active: dict[int, Trial] = {}
        self._measured: dict[tuple[int, int], list[float]] = {}
        self._paused: dict[tuple[int, int], list[tuple[float, int, Trial]]] = {}

    def run(self, enough: Callable[[], bool] = lambda: False) -> None:
        while not enough():
            while self._decide():
                pass
            trial = next((t for t in self._active.values() if t.state == "waiting"), None)
            if trial is None:
                return
            self._train(trial)

    def _train(self, trial: Trial) -> None:
        trial.losses[trial.target] = loss = self._ledger.train(trial.point, trial.target)
        insort(self._measured.setdefault((trial.bracket, trial.target), []), loss)
        if trial.target == trial.rungs[-1]:
            trial.state = "done"
            del self._active[trial.number]
        else:
            trial.state = "parked"

    def _decide(self) -> bool:
        """Whether anything was decided."""
        free = 1 - len(self._active)
        more = self._source.more(self._trials)
        decided = False
        for bracket in range(self._rule.brackets):
            decided |= self._judge(bracket, more=more, crowded=more or free < 0, free=free)
        while len(self._active) < 1 and (point := self._source.next(self._trials)) is not None:
            self._start(point)
            decided = True
        return decided or (not more and not self._active and (self._crown() or self._again()))

    def _again(self) -> bool:
        """Whether one that was stopped goes on after all."""
        found = [] if self._is_open() else self._source.again(self._trials)
        for trial in found[:1]:
            self._advance(trial)
        return bool(found)

    def _is_open(self) -> bool:
        return any(t.state not in ENDED for t in self._trials)

    def _start(self, point: int) -> None:
        number = len(self._trials)
        bracket = number % self._rule.brackets
        rungs = self._rule.rungs(self._ledger.surface.total, bracket)
        self._trials.append(Trial(number, point, bracket, rungs, rungs[0]))
        self._active[number] = self._trials[-1]

    def _crown(self) -> bool:
        """Whether nobody was trained to the end, so that the best of those stopped goes on."""
        if any(t.state in ("done", "paused") for t in self._trials):
            return False
        best = min(self._trials, key=lambda t: (-t.target, t.loss, t.number), default=None)
        if best is None:
            return False
        self._advance(best)
        return True

    def _judge(self, bracket: int, *, more: bool, crowded: bool, free: int) -> bool:
        mine = [t for t in self._active.values() if t.bracket == bracket]
        lowest = min((t.target for t in mine if t.state == "waiting"), default=math.inf)
        steps = {t.target for t in mine if t.state == "parked"}
        steps |= {step for (of, step), paused in self._paused.items() if of == bracket and paused}
        decided = False
        for step in sorted(steps):
            final = not more and lowest > step
            parked = [
                (t, self._verdict(t, final))
                for t in mine
                if (t.state, t.target) == ("parked", step)
            ]
            paused = list(self._judged_paused(bracket, step, final))
            lowest = min(lowest, step)
            later = self._later(parked, paused, (bracket, step), free)
            for trial, verdict in parked:
                if trial.number in later or (verdict == "wait" and crowded):
                    self._pause(trial)
                elif verdict == "go":
                    self._advance(trial)
                elif verdict == "stop":
                    self._stop(trial)
                else:
                    continue
                decided = True
            for trial, verdict in paused:
                if verdict != "wait" and trial.number not in later:
                    self._paused[bracket, step].remove((trial.loss, trial.number, trial))
                    (self._advance if verdict == "go" else self._stop)(trial)
                    decided = True
        return decided

    def _judged_paused(
        self, bracket: int, step: int, final: bool
    ) -> Iterator[tuple[Trial, Verdict]]:
        """The best first, up to one that waits."""
        for _, _, trial in self._paused.get((bracket, step), ()):
            verdict = self._verdict(trial, final)
            yield trial, verdict
            if verdict == "wait":
                return

    def _later(
        self,
        parked: Sequence[tuple[Trial, Verdict]],
        paused: Sequence[tuple[Trial, Verdict]],
        rung: tuple[int, int],
        free: int,
    ) -> set[int]:
        """As the product's `Rung.later`."""
        have = [t for t, verdict in parked if verdict == "go"]
        going = [*have, *(t for t, verdict in paused if verdict == "go")]
        promised = [(self._source.promise(t, self._trials), t.number) for t in going]
        if any(promise is None for promise, _ in promised):
            best = self._paused.get(rung)
            return {t.number for t in have if free <= 0 and best and best[0][0] < t.loss}
        ordered = sorted((p, number) for p, number in promised if p is not None)
        return {number for _, number in ordered[len(have) + max(0, free) :]}

    def _verdict(self, trial: Trial, final: bool) -> Verdict:
        losses = self._measured[trial.bracket, trial.target]
        place = bisect_left(losses, trial.loss)
        curve = [trial.losses[s] for s in sorted(trial.losses)]
        standing = Standing(
            trial.target, place, losses, final, self._ledger.surface.total, lambda: curve
        )
        return self._rule.judge(standing)

    def _pause(self, trial: Trial) -> None:
        trial.state = "paused"
        del self._active[trial.number]
        there = self._paused.setdefault((trial.bracket, trial.target), [])
        insort(there, (trial.loss, trial.number, trial))

    def _advance(self, trial: Trial) -> None:
        trial.target = next(r for r in trial.rungs if r > trial.target)
        trial.state = "waiting"
        self._active[trial.number] = trial

    def _stop(self, trial: Trial) -> None:
        trial.state = "stopped"
        self._active.pop(trial.number, None)


# --- an experiment --------------------------------------------------------------------------------


class Player:
    """Plays the orders of one experiment on one surface. `drawn` may be shared."""

    def __init__(self, experiment: Experiment, surface: Surface, drawn: Drawn) -> None:
        self._experiment, self._drawn = experiment, drawn
        self._key = experiment.search.model_dump_json(exclude={"stopping"})
        self._rule = stopping_rule(experiment.search)
        space = Space(experiment)
        self._around = Neighbourhood(space.dimensions)
        self._surface = surface
        places = [space.places(point) for point in surface.points]
        self._places = [p for p in places if p is not None]
        assert len(self._places) == len(surface.points)
        self._rung = self._rule.rungs(surface.total)[0]
        self._first = first(len(experiment.search.enqueue))

    def __call__(
        self, ledger: Ledger, seed: int, enough: Callable[[], bool] = lambda: False
    ) -> None:
        key = self._key, self._first, seed
        if key not in self._drawn:
            self._drawn[key] = self._draw(seed)
        Play(self._rule, self._source(self._drawn[key]), ledger).run(enough)

    def _draw(self, seed: int) -> list[int]:
        search = self._experiment.search.model_copy(update={"seed": seed})
        experiment = self._experiment.model_copy(update={"search": search})
        if search.strategy == "auto":
            found = LearningSearch(experiment).beforehand()
        else:
            found = configurations(experiment)
        return [self._surface.number(values) for values in found]

    def _source(self, drawn: Sequence[int]) -> Source:
        search = self._experiment.search
        if search.strategy != "auto":
            return Listed(drawn)
        keep, most = search.stopping.keep, search.trials
        assert isinstance(keep, int) and most is not None
        begin = drawn[: min(most, self._first)]
        return Climbing(begin, self._places, self._around, rung=self._rung, keep=keep, most=most)


def _rounded(places: Places) -> Places:
    return tuple(round(place, 6) for place in places)
