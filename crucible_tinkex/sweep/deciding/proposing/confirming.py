"""Which trials confirm the leaders of a search that is over: the same settings with fresh seeds.

The best of many noisy values is too good: its luck helped it to win. Seeds that took no part in the
choice have no such luck, so the winner's value is read from them alone. All leaders get the same
seeds, so that they can be compared in pairs. A pure function of the state.

`confirm = "auto"` asks for seeds until the best is told from the others, or is proved to be as good
as they are (`bench.next_seeds`). Those that are on their way are waited for, but for the first few
that each gets: so what is asked does not depend on who happens to be faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crucible_tinkex.config import SearchSection
from crucible_tinkex.registry import CONFIRM, DONE, SEARCH, TERMINAL, Spent, SweepState
from crucible_tinkex.sweep.deciding.budget import Budget
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.results.batches import Batch, batches
from crucible_tinkex.sweep.results.leaderboard import Configuration, configurations
from crucible_tinkex.training.plan import TrialPlan

if TYPE_CHECKING:
    from crucible_tinkex import bench

FIRST_SEED = 10_000
"""Far from the seeds that people write, so that seeds added later are not used up."""
FIRST_SEEDS = 3
"""`auto`: what each leader gets before any is judged."""
FEWEST_LEADERS = 2
"""A confirmation of fewer says nothing about which is best. Who wants the value of the winner alone
says so by `confirm_top = 1`."""
ALONE = "confirmation: one configuration is complete, and more seeds of it alone say nothing"
AUTO = "auto"


@dataclass(frozen=True)
class Confirmation:
    """What is to be started; empty when all has been, or what runs must end first."""

    plans: Sequence[TrialPlan] = ()
    reason: str = "a leader of the search, with a fresh seed"
    ends: str = "no trial is left to ask for or to train"
    """Why there is nothing more, once nothing runs."""


def planned_confirmations(search: SearchSection, leaders: int) -> int:
    """How many trials; with `auto` the fewest."""
    seeds = FIRST_SEEDS if search.confirm == AUTO else len(confirmation_seeds(search))
    leaders = min(search.confirm_top, leaders)
    return seeds * leaders if leaders >= fewest_leaders(search) else 0


def fewest_leaders(search: SearchSection) -> int:
    """With fewer nobody is confirmed."""
    return min(search.confirm_top, FEWEST_LEADERS)


def begins(state: SweepState, search: SearchSection) -> bool:
    """Whether a confirmation is asked for, and nobody has begun it."""
    return bool(search.confirm) and all(t.phase != CONFIRM for t in state.trials.values())


def first_spent(state: SweepState, search: SearchSection, *, rivals: int) -> list[Spent]:
    """What the least takes that is worth beginning, by what was spent in the search: another seed
    of the fewest leaders; so many `rivals` that have to end before count like a leader."""
    found = [next(t.spent for t in c.trials if t.state == DONE) for c in leaders(state)]
    fewest = fewest_leaders(search)
    if not found or len(found) + bool(rivals) < fewest:
        return []
    return [*found, *found[:1] * (1 + rivals)][: fewest + rivals]


def affordable(
    state: SweepState,
    plans: Sequence[TrialPlan],
    search: SearchSection,
    budget: Budget,
    *,
    at_once: int,
    wall_s: float,
) -> tuple[Sequence[TrialPlan], str | None]:
    """As many of the plans, from the first on, as the budget pays for beside what runs, and which
    cap keeps the others out. Only seeds that the leaders share tell them apart, so each is begun
    for all that are to run it, or for none; the first for the fewest leaders at least, also where
    their trials begin one after the other. What a trial takes is read off that configuration's
    first; one that has taken more already pays for nobody else."""
    if not (plans and budget.limits):
        return plans, None
    took = [(c.values, next(t.spent for t in c.trials if t.state == DONE)) for c in leaders(state)]

    def expected(values: Mapping[str, Any]) -> Spent:
        return next((spent for own, spent in took if own == values), took[0][1])

    running = [_rest(expected(t.values), t.spent) for t in state.open.values()]
    ends = [i for i, p in enumerate(plans, 1) if i == len(plans) or plans[i].seed != p.seed]
    fewest = fewest_leaders(search) - sum(t.phase == CONFIRM for t in state.trials.values())
    sizes = {*ends, *([fewest] if fewest > 0 else [])}
    why = None
    for size in sorted(sizes, reverse=True):
        again = [*running, *(expected(p.values) for p in plans[:size])]
        short = budget.short_of(state, again, trials=size, at_once=at_once, wall_s=wall_s)
        if short is None:
            return plans[:size], why
        why = short
    return (), why


def _rest(expected: Spent, spent: Spent) -> Spent:
    """What is still to be spent, of each kind."""
    return Spent(**{name: max(0, left) for name, left in vars(expected - spent).items()})


def confirmation_seeds(search: SearchSection) -> tuple[int, ...]:
    """The same for every configuration, and none of the search's; with `auto` they follow from what
    the ones before them gave."""
    return tuple(_unused(search))


def _unused(search: SearchSection) -> Iterator[int]:
    seed = FIRST_SEED
    for _ in range(0 if isinstance(search.confirm, str) else search.confirm):
        while seed in search.seeds:
            seed += 1
        yield seed
        seed += 1


def leaders(state: SweepState) -> list[Configuration]:
    """Who may be confirmed, the best by the search first."""
    ranked = configurations(state, confirmed=False)
    return [c for c in ranked if c.complete and not c.reference and not c.forked]


def next_confirmations(state: SweepState, planner: Planner) -> Confirmation:
    """Trials that are to be started once the search is over. Forks have no seed but their parent's,
    and are not confirmed."""
    search = planner.experiment.search
    if not search.confirm:
        return Confirmation()
    if search.confirm == AUTO and _is_on_its_way(state, search):
        return Confirmation()
    able = leaders(state)
    chosen = able[: search.confirm_top]
    if search.confirm == AUTO:
        # Who led before the sweep grew is judged, too: the verdict would else stay open about it.
        former = [c for c in able[search.confirm_top :] if _has_confirmed(c)]
        return _until_told(state, planner, [*chosen, *former])
    if chosen and len(chosen) < fewest_leaders(search):
        return Confirmation(ends=ALONE)
    pairs = [(leader, seed) for seed in confirmation_seeds(search) for leader in chosen]
    return Confirmation(_lacking(state, planner, pairs))


def _has_confirmed(configuration: Configuration) -> bool:
    return any(t.phase == CONFIRM for t in configuration.trials)


def _is_on_its_way(state: SweepState, search: SearchSection) -> bool:
    """Whether all have begun that need not be waited for; cheap, as it is asked at every event."""
    if not any(t.phase == CONFIRM for t in state.open.values()):
        return False
    begun = sum(t.phase == CONFIRM for t in state.trials.values())
    return begun >= FIRST_SEEDS * search.confirm_top


def _lacking(
    state: SweepState, planner: Planner, pairs: Sequence[tuple[Configuration, int]]
) -> list[TrialPlan]:
    plans = [planner.plan(leader.values, seed, phase=CONFIRM) for leader, seed in pairs]
    return [plan for plan in plans if plan.trial_id not in state.trials]


def _until_told(
    state: SweepState, planner: Planner, leaders: Sequence[Configuration]
) -> Confirmation:
    from crucible_tinkex import bench  # SciPy takes half a second
    from crucible_tinkex.sweep.results.conclusion import configuration_names, terms

    search = planner.experiment.search
    names = configuration_names(leaders)
    named = dict(zip(names, leaders, strict=True))
    explored = {t.seed for c in leaders for t in c.trials if t.phase == SEARCH}
    chosen_by = sorted(explored | set(search.seeds))
    found = bench.next_seeds(
        [
            _measured(c, name, batch)
            for (name, c), batch in zip(
                named.items(), batches(state, leaders, aside=chosen_by), strict=True
            )
        ],
        terms(state),
        chosen_by=chosen_by,
        first=FIRST_SEEDS,
        most_seeds=search.confirm_max_seeds,
        fresh_from=FIRST_SEED,
    )
    ends = f"confirmation: {found.reason}"
    begun = found.leader is not None
    if begun and any(t.phase == CONFIRM for t in state.open.values()):
        return Confirmation(ends=ends)
    pairs = [(named[name], seed) for name, seed in found.runs]
    return Confirmation(_lacking(state, planner, pairs), f"confirmation: {found.reason}", ends)


def _measured(configuration: Configuration, name: str, batch: Batch) -> bench.Configuration:
    """A seed that runs is asked for and not measured; one that ended without a value never is."""
    from crucible_tinkex import bench

    values, missing = {}, []
    for trial in configuration.trials:
        value = configuration.objective.value(trial) if trial.state == DONE else None
        if value is not None and math.isfinite(value):
            values[trial.seed] = value
        elif trial.state in TERMINAL:
            missing.append(trial.seed)
        else:
            values[trial.seed] = math.nan
    return bench.Configuration(name, values, missing_seeds=tuple(missing), **batch._asdict())
