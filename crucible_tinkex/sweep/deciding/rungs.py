"""Who was measured at a rung: everybody's place, and who is paused there, the best first.

Reads on in the state's own lists, so an event costs the same in a long sweep as in a short one.
Nothing is kept that the state does not have. It judges nobody (`search.stopping`).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from functools import partial

from crucible_tinkex.registry import CONFIRM, PAUSED, SweepState, TrialRecord
from crucible_tinkex.search.stopping import Standing
from crucible_tinkex.sweep.results.leaderboard import Objective


class Rung:
    """One step of one bracket of one state."""

    def __init__(self, step: int, objective: Objective, *, bracket: int, brackets: int) -> None:
        self._step = step
        self._bracket = bracket
        self._brackets = brackets
        self._objective = objective
        self._losses: dict[str, float] = {}
        self._sorted: list[float] = []
        self._paused: list[tuple[float, int, str]] = []
        self._seen_measured = 0
        self._seen_paused = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def standing(self, trial: TrialRecord, *, final: bool) -> Standing:
        """One that has no result here counts as one more, the worst."""
        is_known = trial.trial_id in self._losses
        losses = self._sorted if is_known else [*self._sorted, math.inf]
        place = self.place(trial)
        curve = partial(self._curve, trial)
        return Standing(self._step, place, losses, final, trial.total_steps, curve)

    def _curve(self, trial: TrialRecord) -> list[float]:
        steps = sorted(s for s in trial.results if s <= self._step)
        return [self._objective.loss(trial, step) for step in steps]

    def _is_mine(self, trial: TrialRecord) -> bool:
        return trial.index % self._brackets == self._bracket

    def place(self, trial: TrialRecord) -> int:
        """How many are better."""
        return bisect_left(self._sorted, self._loss(trial))

    def _loss(self, trial: TrialRecord) -> float:
        """That of a trial without a result, or whose result is not a number, is the worst."""
        return self._losses.get(trial.trial_id, math.inf)

    def read(self, state: SweepState) -> None:
        """Take in what the state has got since the last time."""
        measured = state.measured.get(self._step, [])
        for trial in measured[self._seen_measured :]:
            self._measure(trial)
        self._seen_measured = len(measured)
        paused = state.paused.get(self._step, [])
        for trial in paused[self._seen_paused :]:
            if self._is_mine(trial):
                self.give_back(trial)
        self._seen_paused = len(paused)

    def _measure(self, trial: TrialRecord) -> None:
        if trial.reference or trial.phase == CONFIRM or not self._is_mine(trial):
            return
        loss = self._objective.loss(trial, self._step)
        if trial.trial_id in self._losses:
            self._sorted.pop(self.place(trial))
        self._losses[trial.trial_id] = loss
        insort(self._sorted, loss)

    def ranked(self, state: SweepState) -> list[TrialRecord]:
        """All that were measured here, the best first."""
        trials = (state.trials[trial_id] for trial_id in self._losses)
        return sorted(trials, key=lambda t: (self._loss(t), t.index))

    def has_better_paused(self, state: SweepState, trial: TrialRecord) -> bool:
        """Whether one that is paused here was better."""
        best = self.take_paused(state)
        if best is None:
            return False
        self.give_back(best)
        return self._loss(best) < self._loss(trial)

    def later(
        self,
        state: SweepState,
        have: Sequence[TrialRecord],
        have_not: Sequence[TrialRecord],
        promises: Mapping[str, float | None],
        *,
        free: int,
    ) -> set[str]:
        """Who lets others go first of those that may go on from here and `have` a slot, or
        `have_not`. Where the search says what each promises, the least promising, for whom there
        is no slot; else one that would keep its slot though none is free and a better one has
        none."""
        known = {trial_id: loss for trial_id, loss in promises.items() if loss is not None}
        if len(known) < len(promises):
            passed = have if free <= 0 else ()
            return {t.trial_id for t in passed if self.has_better_paused(state, t)}
        going = sorted((*have, *have_not), key=lambda t: (known[t.trial_id], t.index))
        return {t.trial_id for t in going[len(have) + max(0, free) :]}

    def take_paused(self, state: SweepState) -> TrialRecord | None:
        """The best of those that are paused here; it is `give_back`'s to keep."""
        while self._paused:
            trial = state.trials[heapq.heappop(self._paused)[2]]
            if trial.state == PAUSED and trial.target == self._step and not trial.hold:
                return trial
        return None

    def give_back(self, trial: TrialRecord) -> None:
        entry = (self._loss(trial), trial.index, trial.trial_id)
        heapq.heappush(self._paused, entry)
