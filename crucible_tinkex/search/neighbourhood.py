"""Which points of a space lie next to one: one dimension changed by one step.

A list of numbers that rise or fall has the values before and after as neighbours, another list all
its other values; a range a step to either side: a factor of about three where it is logarithmic
(two for whole numbers), else a fifth of it. Everything is in places, [0, 1] per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crucible_tinkex.search.points.dimensions import Dimension, Places

FACTOR = math.sqrt(10)
FACTOR_OF_INTEGERS = 2.0
SHARE = 1 / 5
SAME = 1e-6
"""Places that differ by less are one."""


@dataclass(frozen=True)
class Step:
    """From one place of a dimension to another."""

    dimension: int
    start: float
    end: float

    def of(self, places: Places) -> Places:
        """Where it leads from there, whatever stands in that dimension."""
        return (*places[: self.dimension], self.end, *places[self.dimension + 1 :])


class Neighbourhood:
    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self._dimensions = dimensions
        self._steps = [step_size(d) for d in dimensions]
        self._ordered = [d.ordered for d in dimensions]
        halves = zip(dimensions, self._steps, strict=True)
        self._halves = [0.0 if d.span is None else size / 2 for d, size in halves]
        self.has_ranges = any(d.span is not None for d in dimensions)
        self._known: dict[tuple[Places, float], tuple[Step, ...]] = {}

    def steps(self, places: Places, *, share: float = 1.0) -> tuple[Step, ...]:
        """Those that lead from a point to its neighbours. `share`: of a step, in ranges; below 1
        the values of lists stay as they are."""
        key = places, share
        if key not in self._known:
            self._known[key] = tuple(self._from(places, share))
        return self._known[key]

    def _from(self, places: Places, share: float) -> Iterator[Step]:
        for i, dimension in enumerate(self._dimensions):
            if dimension.span is None:
                ends = self._rows(i, places[i]) if share == 1 else iter(())
            else:
                size = self._steps[i] * share
                ends = (min(max(places[i] + way, 0.0), 1.0) for way in (-size, size))
            for end in ends:
                if abs(end - places[i]) > SAME:
                    yield Step(i, places[i], end)

    def _rows(self, i: int, place: float) -> Iterator[float]:
        dimension, size = self._dimensions[i], self._steps[i]
        if self._ordered[i]:
            return (end for end in (place - size, place + size) if 0 < end < 1)
        return ((row + 0.5) * size for row in range(len(dimension.rows)))

    def distance(self, one: Places, other: Places) -> float:
        """In steps, over all dimensions; of lists without an order, how many differ."""
        apart = zip(one, other, self._ordered, self._steps, strict=True)
        return sum(abs(a - b) / size if way else abs(a - b) > SAME for a, b, way, size in apart)

    def same(self, one: Places, other: Places, *, share: float = 1.0) -> bool:
        """Whether two points are nearer than half a step in every range, and equal elsewhere."""
        for a, b, size in zip(one, other, self._halves, strict=True):
            apart = abs(a - b)
            if apart >= SAME and apart >= size * share:
                return False
        return True


def step_size(dimension: Dimension) -> float:
    """In places. Of a list: from one value to the next."""
    if dimension.span is None:
        return 1 / len(dimension.rows)
    low, high = dimension.scaled_bounds()
    if low == high:
        return 1.0
    if dimension.log:
        return min(
            1.0, math.log(FACTOR_OF_INTEGERS if dimension.integer else FACTOR) / (high - low)
        )
    return max(SHARE, 1 / (high - low)) if dimension.integer else SHARE
