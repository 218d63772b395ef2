"""How `auto` spends: how many configurations it looks at, up to which rungs, and who goes on.

The recipe: what the prior holds likely is trained up to one early rung; a few go on to a second,
the best of those to the end; then the neighbours of the leader, one setting changed by one place,
are tried in the same way until none is better. Early rungs mislead in one direction, as a rate
that is too high looks good early and one that is a little lower wins late; the neighbours make up
for that. All are pure functions, so a resumed sweep plans the same again; measured against the
other strategies in `benchmarks/replay.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_SHARE, SECOND_SHARE = 1 / 20, 1 / 3
"""Where the two rungs lie between the start and the end of a trial."""
KEEP_FIRST = 6
"""How many pass the first rung."""
KEEP_SECOND = 2
"""How many pass the second, of those that the first let through."""
MARGIN = 0.1
"""A neighbour goes on at a rung while it is at most this share worse than the leader was there."""
INFORMED_SHARE = 1 / 3
"""How much of the candidates starts where a prior that is in range says which are likely."""
FEWEST = 4
"""Candidates below which nothing is stopped: there is nothing to save."""


@dataclass(frozen=True)
class Recipe:
    """`first`: how many candidates start. `rungs`: step and how many pass it, ascending; the last
    step is the trial's end."""

    first: int
    rungs: tuple[tuple[int, int], ...]
    total_steps: int

    @property
    def cost(self) -> float:
        """Of the rungs and ends, without the neighbours, in whole trials."""
        steps, running, before = 0, self.first, 0
        for step, passing in (*self.rungs, (self.total_steps, 0)):
            steps += running * (step - before)
            running, before = min(running, passing), step
        return steps / self.total_steps


def recipe(
    candidates: int, steps: int, budget: float | None = None, *, informed: bool = False
) -> Recipe:
    """For so many candidates of so many steps each. `informed`: a prior that is in range has put
    the likely ones first, so only those start. `budget` in whole trials: the number of candidates
    is cut until the recipe costs at most half of it, the other half being for the neighbours."""
    rungs = [
        (max(1, round(steps * share)), keep)
        for share, keep in ((FIRST_SHARE, KEEP_FIRST), (SECOND_SHARE, KEEP_SECOND))
    ]
    most = math.ceil(candidates * INFORMED_SHARE) if informed else candidates
    for first in range(max(most, min(FEWEST, candidates)), 0, -1):
        passed = tuple((step, min(first, keep)) for step, keep in rungs if step < steps)
        found = Recipe(first, passed if first >= FEWEST else (), steps)
        if budget is None or found.cost <= budget / 2 or first == 1:
            return found
    raise ValueError("there is no candidate")


def neighbours(
    point: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """The points that differ in one setting by one place; words have no order, so all of them."""
    for key, values in axes.items():
        place = values.index(point[key])
        ordered = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        near = (place - 1, place + 1) if ordered else range(len(values))
        for other in near:
            if 0 <= other < len(values) and other != place:
                yield {**point, key: values[other]}


def worth_it(loss: float, leader: float) -> bool:
    """Whether a neighbour goes on at a rung, given what the leader had there."""
    return math.isfinite(loss) and loss <= leader * (1 + MARGIN)


def by_likelihood(
    points: Sequence[Mapping[str, Any]], expected: Callable[[Mapping[str, Any]], float]
) -> list[int]:
    """Places of the points, the likeliest (the smallest expected loss) first; ties in order."""
    return sorted(range(len(points)), key=lambda i: expected(points[i]))


def best(losses: Mapping[int, float], count: int) -> Iterable[int]:
    """The `count` with the smallest loss, the best first."""
    return sorted(losses, key=lambda i: (losses[i], i))[:count]
