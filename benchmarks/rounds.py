"""Ways to do the same work, timed in turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

MIN_ROUNDS = 3
MAX_ROUNDS = 25


class Rounds:
    """Wall seconds of every way in every round; each round begins with another way."""

    def __init__(self, ways: Mapping[str, Callable[[], None]], *, budget_s: float) -> None:
        """One round unmeasured, then as many as fit into `budget_s`, within the bounds above."""
        self._seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        end = time.perf_counter() + budget_s
        order = list(ways)
        while len(self) < MIN_ROUNDS or (time.perf_counter() < end and len(self) < MAX_ROUNDS):
            for name in order:
                started = time.perf_counter()
                ways[name]()
                self._seconds[name].append(time.perf_counter() - started)
            order.append(order.pop(0))

    def __len__(self) -> int:
        return min(map(len, self._seconds.values()))

    def rate(self, name: str, units: int) -> float:
        """Median units per second."""
        return units / statistics.median(self._seconds[name])

    def faster(self, name: str, other: str) -> float:
        """How many times as fast as `other`: the median over the rounds, each on its own."""
        pairs = zip(self._seconds[name], self._seconds[other], strict=True)
        return statistics.median(b / a for a, b in pairs)
