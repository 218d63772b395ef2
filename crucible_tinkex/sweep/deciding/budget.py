"""Whether a sweep, or a trial, has used what it may: pure, from what the journal says was spent.

Spends count when operations are sent, retries included. Sessions ask before each step and each
evaluation (`allowance`), so the step that reaches a cap is the last one, and a cap is passed by
that step and by the evaluations that were in flight; this module then ends the sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from crucible_tinkex.config import BudgetSection, budget_text
from crucible_tinkex.registry import Spent, SweepState, TrialRecord
from crucible_tinkex.sweep.deciding.prices import Price

BUDGET = "budget"


class Budget:
    """The caps of one experiment; no cap without a section."""

    def __init__(self, section: BudgetSection | None = None, price: Price | None = None) -> None:
        self._section = section or BudgetSection()
        self._price = price

    @property
    def capped(self) -> bool:
        """Whether anything but the number of trials is."""
        return self._section.meters or self._section.hours is not None

    @property
    def limits(self) -> bool:
        """Whether anything is capped, the number of trials among it."""
        return self.capped or self._section.trials is not None

    def trials_left(self, state: SweepState) -> int | None:
        """How many more may start; None: any."""
        cap = self._section.trials
        return None if cap is None else max(0, cap - len(state.trials))

    def reached(self, state: SweepState, wall_s: float) -> str | None:
        """Which cap of the sweep is, in words. `wall_s`: seconds of this run."""
        used = self._used(state.spent, self._hours(state, wall_s))
        return next(_reached("", vars(self._section), used), None)

    def short_of(
        self,
        state: SweepState,
        again: Sequence[Spent],
        *,
        trials: int,
        at_once: int,
        wall_s: float,
    ) -> str | None:
        """Which cap of the sweep does not pay for so many more `trials`, or for what these used
        once more, in the words of `reached`. `at_once`: how many may run side by side."""
        left = self.trials_left(state)
        if left is not None and left < trials:
            return f"budget.trials: {len(state.trials)} of {self._section.trials} are used"
        more = sum(again, Spent())
        hours = self._hours(state, wall_s)
        used = self._used(state.spent, hours)
        side_by_side = max(1, min(at_once, len(again)))
        after = self._used(state.spent + more, hours + more.seconds / side_by_side / 3600)
        for key, value in used.items():
            cap = getattr(self._section, key)
            if cap is not None and after[key] > cap:
                return f"budget.{key}: {value:.6g} of {cap:.6g} are used"
        return None

    def reached_by(self, trial: TrialRecord) -> str | None:
        """Which cap of a trial is."""
        spent = trial.spent
        used = self._used(spent, spent.seconds / 3600)
        return next(_reached("trial.", vars(self._section.trial), used), None)

    def _hours(self, state: SweepState, wall_s: float) -> float:
        return (state.wall_s + state.proofs.seconds + wall_s) / 3600

    def _used(self, spent: Spent, hours: float) -> Mapping[str, float]:
        used = {"steps": spent.steps, "tokens": spent.tokens, "hours": hours}
        return used if self._price is None else {**used, "dollars": self._price.of(spent)}


def more_budget(reached: str, trials: int) -> str:
    """What `--budget` would have to say for a sweep of so many `trials` to go on that ended with
    these words, of `Budget.reached` or of the cap on trials: twice as much of the same."""
    key, _, words = reached.removeprefix("budget.").partition(": ")
    if key == "trials":
        return budget_text(key, 2 * trials)
    used, _, cap, *_ = words.split()  # as `_reached` has them
    return budget_text(key, 2 * max(float(used), float(cap)))


def _reached(
    name: str, caps: Mapping[str, float | None], used: Mapping[str, float]
) -> Iterator[str]:
    for key, value in used.items():
        cap = caps.get(key)
        if cap is not None and value >= cap:
            yield f"budget.{name}{key}: {value:.6g} of {cap:.6g} are used"
