"""Which trials are asked for next: configurations of the search, each with every seed.

Asking is a pure function of the experiment and the trials that the journal knows, so a resumed or
amended sweep asks only for what it does not have. All seeds of a configuration come together. Where
the configurations are known beforehand their order is that of the search; where the search learns,
`trying` says what the results so far mean, and `learned` or `climbing` what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from crucible_tinkex.registry import SweepState, TrialRecord
from crucible_tinkex.search.points.space import Values, trial_settings
from crucible_tinkex.search.strategies import learns
from crucible_tinkex.sweep.deciding.planner import Planner, numbered, usual_reason
from crucible_tinkex.sweep.deciding.proposing.climbing import ClimbingTrials
from crucible_tinkex.sweep.deciding.proposing.learned import LearnedTrials
from crucible_tinkex.sweep.deciding.proposing.trying import Tried
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

    def why(self, plan: TrialPlan) -> str:
        """Why the trial was asked for the last time."""
        ...

    def promise(self, state: SweepState, trial: TrialRecord) -> float | None:
        """The loss that a trial which may go on from its rung is expected to end with. Those with
        the least go on first, as slots get free; None where all that may go on are promoted at
        once, in the order of their places."""
        ...

    def again(self, state: SweepState) -> list[TrialRecord]:
        """When all is over, which of those that a rung stopped should go on after all, the most
        promising first."""
        ...

    @property
    def is_slow(self) -> bool:
        """Whether `ask` may take so long that an event loop should not wait for it."""
        ...


def trials_of(planner: Planner, configurations: Sequence[Values]) -> Asker:
    """The asker of the planner's experiment, whose known `configurations` are these."""
    if planner.experiment.search.strategy == "auto":
        return ClimbingTrials(planner)
    if learns(planner.experiment):
        return LearnedTrials(planner)
    return ListedTrials(planner, configurations)


class ListedTrials:
    """Trials of configurations that are known beforehand (grid, list, random, qmc)."""

    is_slow = False

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
        if self._planner.reference:
            yield self._planner.reference
        for values in self._configurations:
            for seed in search.seeds:
                yield self._planner.plan(values, seed)

    def more(self, state: SweepState) -> bool:
        return bool(self._fresh(state, 1))

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]:
        return numbered(self._planner, state, self._fresh(state, count))

    def why(self, plan: TrialPlan) -> str:
        return usual_reason(self._planner, plan)

    def promise(self, state: SweepState, trial: TrialRecord) -> float | None:
        return None

    def again(self, state: SweepState) -> list[TrialRecord]:
        return []

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
