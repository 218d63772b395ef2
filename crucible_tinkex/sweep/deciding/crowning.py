"""Who is trained to the end after all, where stopping left no configuration with all its seeds.

Rules judge trials, and a configuration of several seeds may lose some of them and keep others. Only
one whose seeds are all done can be the best, be confirmed or be exported, so without this a search
could end with nothing to show. One alone cannot be compared with anything, so two must be complete
where leaders are to be confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence

from crucible_tinkex.config import SearchSection
from crucible_tinkex.registry import DONE, PERSON, SEARCH, STOPPED, SweepState, TrialRecord
from crucible_tinkex.sweep.deciding.budget import Budget
from crucible_tinkex.sweep.deciding.proposing.confirming import fewest_leaders, leaders
from crucible_tinkex.sweep.results.leaderboard import Objective, configurations


def to_complete(
    state: SweepState, budget: Budget, *, by_trial: bool, fewest: int = 1
) -> list[TrialRecord]:
    """The seeds that were stopped of the configuration whose best one came furthest, and of equals
    has the best value; none where `fewest` configurations are complete. One that has lost a seed
    otherwise (it failed, a person ended it, it used what one trial may) cannot be completed, and
    comes into question only where no trial at all is done. `by_trial`: any trial that is done is
    enough (of a population, whose clones have one seed each)."""
    if not any(_may_go_on(t, budget) for t in state.trials.values()):
        return []
    found = [c for c in configurations(state, confirmed=False) if not c.reference]
    searched = [[t for t in c.trials if t.phase == SEARCH] for c in found]
    is_any_done = any(t.state == DONE for trials in searched for t in trials)
    if sum(c.complete for c in found) >= fewest or (by_trial and is_any_done):
        return []
    stopped = [[t for t in trials if _may_go_on(t, budget)] for trials in searched]
    able = [
        (trials, left)
        for c, trials, left in zip(found, searched, stopped, strict=True)
        if left and {t.seed for t in left} >= set(c.missing_seeds)
    ]
    if not able and not is_any_done:
        able = [(left, left) for left in stopped if left]
    objective = Objective.of(state)
    best = min(able, key=lambda one: _place(one[0], objective), default=None)
    return [] if best is None else best[1]


def to_compare(
    state: SweepState, search: SearchSection, budget: Budget, *, by_trial: bool
) -> list[TrialRecord]:
    """The same before a confirmation, where one that is complete has nobody to be compared with."""
    if not leaders(state):
        return []
    return to_complete(state, budget, by_trial=by_trial, fewest=fewest_leaders(search))


def _may_go_on(trial: TrialRecord, budget: Budget) -> bool:
    was_stopped = trial.state == STOPPED and trial.hold != PERSON and trial.phase == SEARCH
    return was_stopped and bool(trial.results) and not budget.reached_by(trial)


def _place(trials: Sequence[TrialRecord], objective: Objective) -> tuple[float, float, int]:
    """That of the best of them."""
    return min(
        (-t.metrics_step, objective.loss(t, t.metrics_step), t.index) for t in trials if t.results
    )
