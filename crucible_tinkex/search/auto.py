"""How `auto` looks for the best setting: guesses, one early rung, neighbours, the best few.

What earlier sweeps suggest and a few evenly spread points are trained up to one early rung, where a
trial costs a twentieth. There the search climbs: the neighbours of those that would go on, one
setting changed by one step, are trained up to the rung, too, until all are known. Then the best few
go on to their ends, one after the other as sessions get free, the most promising first. Early rungs
mislead in one direction, as a rate that is too high looks good early and one that is a little lower
wins late; so what is promising is learnt from those that have ended (`expected`), and all
neighbours of the one that ended best are looked at in the same way, until none is better, and
ranges at half the step. At last those of its neighbours that the rung had stopped go on after all.

A step that lost elsewhere (rank 8 to 2, say) is not tried again from the next point: settings
mostly act alike wherever they are changed. Only around the one that ended best nothing is left out.

All is a pure function of what was measured, so a resumed sweep goes on as it would have; measured
through the sweep's own policy in `benchmarks/replay.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from crucible_tinkex.search.neighbourhood import SAME, Neighbourhood, Step
from crucible_tinkex.search.points.dimensions import Places

RUNG_SHARE = 1 / 20
"""Where the rung lies between the start and the end of a trial."""
KEEP = 6
"""How many pass it, and have their neighbours looked at there."""
FEWEST_KEPT = 2
MARGIN = 0.1
"""A step is not tried again where it made the loss worse by more than this share."""
FIRST = 6
"""Configurations that start before the search climbs, where nothing is guessed."""
FIRST_GUESSED, SPREAD = 4, 2
"""The same where something is; and how many evenly spread points there are beside the guesses."""
FEWEST = 4
"""Configurations below which nothing is stopped: there is nothing to save."""
DIGITS = 6
"""Of places that are compared."""
LIKENESS = 1 / 4
"""How much less one that ended counts for another with every step between them."""
FINER = 0.5
"""Share of a step at which the ranges around the best are looked at last."""


def first(guesses: int) -> int:
    """How many configurations start before the search climbs."""
    return max(FIRST_GUESSED, guesses + SPREAD) if guesses else FIRST


# --- how much -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """`trials`: configurations, at most. `rung`: the step at which `keep` of them go on; None where
    all are trained to their ends."""

    trials: int
    rung: int | None
    keep: int
    total_steps: int

    @property
    def cost(self) -> float:
        """In whole trials."""
        if self.rung is None:
            return self.trials
        share = self.rung / self.total_steps
        return self.trials * share + min(self.keep, self.trials) * (1 - share)


def recipe(trials: int, steps: int, budget: float | None = None) -> Recipe:
    """For at most so many configurations of so many steps each. `budget` in whole trials: first
    fewer configurations pass the rung, then fewer are tried, until it is enough."""
    rung = max(1, round(steps * RUNG_SHARE))
    for keep in range(KEEP, FEWEST_KEPT - 1, -1):
        found = _recipe(trials, rung, keep, steps)
        if budget is None or found.cost <= budget:
            return found
    for fewer in range(trials - 1, 0, -1):
        found = _recipe(fewer, rung, FEWEST_KEPT, steps)
        if found.cost <= (budget or 0):
            return found
    return _recipe(1, rung, FEWEST_KEPT, steps)


def _recipe(trials: int, rung: int, keep: int, steps: int) -> Recipe:
    stops = trials >= FEWEST and keep < trials and rung < steps
    return Recipe(trials, rung if stops else None, keep, steps)


# --- where ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One configuration that was tried. Losses are None until they are measured, and infinite for
    one that failed or diverged."""

    places: Places
    early: float | None = None
    """At the rung."""
    final: float | None = None
    """At the trial's end."""
    open: bool = False
    """Whether it may still be trained."""


@dataclass(frozen=True)
class Next:
    """`places`: where to look next, and the `reason`. `waits`: that depends on what is being
    trained up to the rung, so nobody is judged there before."""

    places: tuple[Places, ...] = ()
    waits: bool = False
    reason: str = ""


def next_places(looks: Sequence[Look], around: Neighbourhood, *, keep: int = KEEP) -> Next:
    """Where to look, given all that was tried."""
    if any(look.open and look.early is None for look in looks):
        return Next(waits=True)
    early = {look.places: look.early for look in looks if look.early is not None}
    losses = _Losses(early)
    finite = [places for places, loss in early.items() if math.isfinite(loss)]
    leaders = sorted(finite, key=lambda places: early[places])[:keep]
    for place, leader in enumerate(leaders, start=1):
        steps = _unknown(leader, looks, around)
        if found := tuple(end for step, end in steps if not losses.lost(step)):
            return Next(found, reason=f"a neighbour of the one in place {place} at the first rung")
    if any(look.open for look in looks):
        return Next()
    return _around_the_best(looks, around)


def expected(places: Places, early: float, looks: Sequence[Look], around: Neighbourhood) -> float:
    """The loss at the end of one that stands at the rung: what those that have ended lost from the
    rung on is added to its own loss there, the mean weighted by how alike they are (Nadaraya and
    Watson's). So after one `constant` and one `cosine` that are alike in all else have ended, the
    better of both is what is waited for. Before anybody has ended it is the loss at the rung."""
    ended = [
        (LIKENESS ** around.distance(places, look.places), look.final - look.early)
        for look in looks
        if look.early is not None and look.final is not None and math.isfinite(look.final)
        if math.isfinite(look.early)  # what had no loss there tells nothing of what comes after
    ]
    weight = sum(w for w, _ in ended)
    return early + sum(w * later for w, later in ended) / weight if weight else early


def beside_the_best(looks: Sequence[Look], around: Neighbourhood) -> list[Look]:
    """Neighbours of the one that ended best that the rung stopped, the most promising first: the
    rung may have misled about them."""
    best = _best(looks)
    if best is None:
        return []
    ends = [step.of(best) for step in around.steps(best)]
    found = [
        (expected(look.places, look.early, looks, around), i, look)
        for i, look in enumerate(looks)
        if look.early is not None
        and math.isfinite(look.early)
        and look.final is None
        and not look.open
        and any(around.same(end, look.places) for end in ends)
    ]
    return [look for _, _, look in sorted(found, key=lambda one: one[:2])]


def _best(looks: Sequence[Look]) -> Places | None:
    ended = {k.places: k.final for k in looks if k.final is not None and math.isfinite(k.final)}
    return min(ended, key=lambda places: ended[places], default=None)


def _around_the_best(looks: Sequence[Look], around: Neighbourhood) -> Next:
    best = _best(looks)
    if best is None:
        return Next()
    for share in (1.0, FINER):
        if found := tuple(end for _, end in _unknown(best, looks, around, share)):
            return Next(found, reason="a neighbour of the best that was trained to its end")
    return Next()


def _unknown(
    leader: Places, looks: Sequence[Look], around: Neighbourhood, share: float = 1.0
) -> Iterator[tuple[Step, Places]]:
    """The steps from there that lead to what was not tried already, and where they lead."""
    tried = {_rounded(look.places) for look in looks}
    near = looks if around.has_ranges else ()  # else only what is equal is the same
    for step in around.steps(leader, share=share):
        end = step.of(leader)
        if _rounded(end) not in tried and not any(
            around.same(end, look.places, share=share) for look in near
        ):
            yield step, end


class _Losses:
    """At the rung, by place; asked about one step at a time."""

    def __init__(self, early: Mapping[Places, float]) -> None:
        self._losses = {_rounded(places): loss for places, loss in early.items()}
        self._lost: dict[Step, bool] = {}

    def lost(self, step: Step) -> bool:
        """Whether this step was taken elsewhere, and made it worse by more than a margin each
        time."""
        if step not in self._lost:
            pairs = list(self._pairs(step))
            self._lost[step] = bool(pairs) and all(n > o + MARGIN * abs(o) for o, n in pairs)
        return self._lost[step]

    def _pairs(self, step: Step) -> Iterator[tuple[float, float]]:
        """Before and after, wherever both ends were measured."""
        for start, loss in self._losses.items():
            if abs(start[step.dimension] - step.start) < SAME:
                end = self._losses.get(_rounded(step.of(start)))
                if end is not None:
                    yield loss, end


@lru_cache(maxsize=4096)
def _rounded(places: Places) -> Places:
    return tuple(round(place, DIGITS) for place in places)
