"""Which trials are asked for next: configurations of the search, each with every seed.

Asking is a pure function of the experiment and the trials that the journal knows, so a resumed or
amended sweep asks only for what it does not have. The order is that of the search; all seeds of a
configuration come together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from crucible_tinkex.registry import SweepState
from crucible_tinkex.search.space import Values
from crucible_tinkex.sweep.planner import Planner
from crucible_tinkex.training.plan import TrialPlan


class ListedTrials:
    """Trials of configurations that are known beforehand (grid, list, random)."""

    def __init__(self, planner: Planner, configurations: Sequence[Values]) -> None:
        self._planner = planner
        self._configurations = configurations
        self._rest = self._plans()
        self._offered: deque[TrialPlan] = deque()
        """Asked for, and not yet seen in the journal."""

    @property
    def planned(self) -> int:
        """How many trials there are in all."""
        seeds = self._planner.experiment.search.seeds
        return len(self._configurations) * len(seeds) + self._planner.has_reference

    def _plans(self) -> Iterator[TrialPlan]:
        search = self._planner.experiment.search
        if self._planner.has_reference:
            yield self._planner.plan({}, search.seeds[0], reference=True)
        for values in self._configurations:
            for seed in search.seeds:
                yield self._planner.plan(values, seed)

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        """At most `count` trials that the sweep does not have, numbered on from those it has."""
        while self._offered and self._offered[0].trial_id in state.trials:
            self._offered.popleft()
        fresh = (p for p in self._rest if p.trial_id not in state.trials)
        self._offered += islice(fresh, max(0, count - len(self._offered)))
        first = len(state.trials)
        return [
            self._planner.plan(p.values, p.seed, index=first + i, reference=p.reference)
            for i, p in enumerate(islice(self._offered, count))
        ]
