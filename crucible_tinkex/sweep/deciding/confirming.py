"""Which trials confirm the leaders of a search that is over: the same settings with fresh seeds.

The best of many noisy values is too good: its luck helped it to win. Seeds that took no part in the
choice have no such luck, so the winner's value is read from them alone. All leaders get the same
seeds, so that they can be compared in pairs. A pure function of the state.
"""

from __future__ import annotations

from collections.abc import Iterator

from crucible_tinkex.config import SearchSection
from crucible_tinkex.registry import CONFIRM, SweepState
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.results.leaderboard import configurations
from crucible_tinkex.training.plan import TrialPlan

FIRST_SEED = 10_000
"""Far from the seeds that people write, so that seeds added later are not used up."""


def confirmation_seeds(search: SearchSection) -> tuple[int, ...]:
    """The same for every configuration, and none of the search's."""
    return tuple(_unused(search))


def _unused(search: SearchSection) -> Iterator[int]:
    seed = FIRST_SEED
    for _ in range(search.confirm):
        while seed in search.seeds:
            seed += 1
        yield seed
        seed += 1


def next_confirmations(state: SweepState, planner: Planner) -> list[TrialPlan]:
    """Trials that are to be started once the search is over; empty when all have been. Forks have
    no seed but their parent's, and are not confirmed."""
    search = planner.experiment.search
    if not search.confirm:
        return []
    ranked = configurations(state, confirmed=False)
    leaders = [c for c in ranked if c.complete and not c.reference and not c.forked]
    plans = [
        planner.plan(leader.values, seed, phase=CONFIRM)
        for seed in confirmation_seeds(search)
        for leader in leaders[: search.confirm_top]
    ]
    return [plan for plan in plans if plan.trial_id not in state.trials]
