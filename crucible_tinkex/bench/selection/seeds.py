"""Which seeds to run next, and how many it will take: pure functions of the values so far.

`next_seeds` is a selection with an indifference zone that needs no variance beforehand (`race`).
The leader and the rivals that press it most get the next seed with the same number, so that
differences stay paired; nobody else. It ends when no rival is open any more. A configuration that
is the best by more than the zone is then the leader with probability 1 - alpha at least, where the
seeds do about as much to all (docs/statistics.md: what they may differ).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from crucible_tinkex.bench.power import seeds_to_settle
from crucible_tinkex.bench.selection.configurations import Configuration, Table, table
from crucible_tinkex.bench.selection.contest import Contest, contest, level_of
from crucible_tinkex.bench.selection.results import Forecast, Terms
from crucible_tinkex.errors import ConfigError


@dataclass(frozen=True)
class NextSeeds:
    """`runs` are (configuration, seed), none twice; empty when it is over."""

    runs: tuple[tuple[str, int], ...]
    settled: bool
    """Whether it ended because the question is answered, not because a limit is reached."""
    reason: str
    leader: str | None = None


def next_seeds(
    configurations: Sequence[Configuration],
    terms: Terms,
    *,
    chosen_by: Sequence[int] = (),
    leaders: int | None = None,
    first: int = 3,
    proof: int = 2,
    most_seeds: int = 20,
    most_runs: int | None = None,
    fresh_from: int = 0,
) -> NextSeeds:
    """The runs to start now; ask again when they have ended.

    `chosen_by`: the exploring seeds; where given, all comparisons are on fresh ones. `leaders`:
    only so many, the best by the exploring seeds, compete. `first`: seeds that each gets before
    anything is judged (two at least). `proof`: fresh seeds that the leader runs alone in the end,
    for a value without optimism. `most_seeds`: fresh seeds of one configuration, `most_runs`: runs
    with fresh seeds of all, at most. A failed seed (`missing_seeds`) is not asked for again. Fresh
    seeds are numbered from `fresh_from`, or from behind all that were ever asked for.
    Raises `ConfigError` for `leaders` without `chosen_by`.
    """
    competing = _competing(configurations, terms, set(chosen_by), leaders)
    if len(competing) < 2:
        return NextSeeds((), True, "there is nothing to tell apart")
    offer = _Offer(configurations, competing, frozenset(chosen_by), most_runs, fresh_from)
    start = offer.up_to(max(2, first))
    if start:
        return offer.made(start, None, "each gets a few seeds before any is judged")
    found = table(competing, direction=terms.direction, chosen_by=chosen_by)
    if len(found.names) < 2:
        return NextSeeds((), True, "there is nothing to tell apart")
    result = contest(found.values, zone=terms.zone, alpha=terms.level, shares=found.shares)
    leader = found.names[int(result.leader)]
    rivals = [found.names[i] for i in np.flatnonzero(result.open)]
    if rivals and not result.varies:
        return NextSeeds((), True, "the seeds change nothing: more of them say nothing", leader)
    beyond = f"than {leader} by more than {terms.zone:g}"
    if rivals and offer.shared(leader) < most_seeds and offer.tried < most_seeds + proof:
        reason = f"{len(rivals)} may still be better {beyond}"
        pressing = [found.names[i] for i in np.flatnonzero(result.pressing)]
        return offer.made(offer.next({leader, *pressing}), leader, reason)
    if offer.alone(leader) < proof:
        runs = offer.new(leader, proof - offer.alone(leader))
        return offer.made(runs, leader, f"for a value of {leader} that took no part in the choice")
    if rivals:
        return NextSeeds((), False, f"{len(rivals)} open after {most_seeds} seeds", leader)
    return NextSeeds((), True, f"none is better {beyond}", leader)


def _competing(
    configurations: Sequence[Configuration],
    terms: Terms,
    chosen_by: set[int],
    leaders: int | None,
) -> list[Configuration]:
    able = [c for c in configurations if c.status == "complete"]
    if leaders is None:
        return able
    if not chosen_by:
        raise ConfigError("the leaders must be chosen by seeds that stay the same: say which")
    explored = {c.name: [v for s, v in c.measured.items() if s in chosen_by] for c in able}
    seen = [c for c in able if explored[c.name]]
    return sorted(seen, key=lambda c: -terms.sign * fmean(explored[c.name]))[:leaders]


@dataclass(frozen=True)
class _Offer:
    """Which (configuration, seed) can be asked for."""

    configurations: Sequence[Configuration]
    competing: Sequence[Configuration]
    aside: frozenset[int]
    most_runs: int | None
    fresh_from: int

    def made(self, runs: Sequence[tuple[str, int]], leader: str | None, reason: str) -> NextSeeds:
        ran = sum(len(self._ran(c)) for c in self.competing)
        if self.most_runs is not None and ran + len(runs) > self.most_runs:
            return NextSeeds((), False, f"{self.most_runs} runs do not suffice: {reason}", leader)
        return NextSeeds(tuple(runs), False, reason, leader)

    def up_to(self, count: int) -> list[tuple[str, int]]:
        """Of the first `count` fresh seeds, what is lacking."""
        known = self._seeds()[:count]
        seeds = [*known, *range(self._unused, self._unused + count - len(known))]
        return [(c.name, s) for s in seeds for c in self.competing if self._lacks(c, s)]

    def next(self, names: Collection[str]) -> list[tuple[str, int]]:
        """The first seed that one of these lacks, for all of them that do."""
        chosen = [c for c in self.competing if c.name in names]
        for seed in (*self._seeds(), self._unused):
            runs = [(c.name, seed) for c in chosen if self._lacks(c, seed)]
            if runs:
                return runs
        return []

    def new(self, name: str, count: int) -> list[tuple[str, int]]:
        return [(name, self._unused + i) for i in range(count)]

    def shared(self, name: str) -> int:
        return len(self._ran(self._named(name)) & self._of_others(name))

    def alone(self, name: str) -> int:
        """One that failed is no proof, and is not replaced."""
        named = self._named(name)
        return len((self._ran(named) | {*named.missing_seeds}) - self._of_others(name) - self.aside)

    def _of_others(self, name: str) -> set[int]:
        """Seeds that others have, or failed to have, run."""
        others = [c for c in self.competing if c.name != name]
        return {s for c in others for s in (*self._ran(c), *c.missing_seeds)}

    @property
    def tried(self) -> int:
        """Fresh seeds that anybody was asked for: where they fail again and again, it ends."""
        return len(self._seeds())

    def _named(self, name: str) -> Configuration:
        return next(c for c in self.competing if c.name == name)

    def _ran(self, configuration: Configuration) -> set[int]:
        return set(configuration.measured) - self.aside

    def _lacks(self, configuration: Configuration, seed: int) -> bool:
        return seed not in configuration.measured and seed not in configuration.missing_seeds

    def _seeds(self) -> list[int]:
        """The fresh ones that were ever asked for, of those that compete."""
        asked = {s for c in self.competing for s in (*c.values, *c.missing_seeds)}
        return sorted(asked - self.aside)

    @property
    def _unused(self) -> int:
        asked = {s for c in self.configurations for s in (*c.values, *c.missing_seeds)}
        return max(max(asked | self.aside, default=-1) + 1, self.fresh_from)


def forecast(found: Table, result: Contest, terms: Terms) -> Forecast:
    """How many more seeds, runs and how much cost would probably end `next_seeds`."""
    first = int(result.leader)
    duels = result.duels
    needed: dict[int, int] = {}
    for i in np.flatnonzero(result.open):
        shared = int(duels.shared[i])
        share = min(float(found.shares[i]), float(found.shares[first]))
        n = seeds_to_settle(
            float(duels.lead[i]),
            float(duels.sd[i]),
            shared=shared,
            df=float(duels.df[i]),
            level=float(level_of(terms.level, np.array(share))),
            zone=terms.zone,
            nats=math.log((1 - share) / (terms.level * share)),
        )
        if n is None:
            return Forecast(None, None, None)
        needed[int(i)] = max(1, n - shared)
    needed[first] = max(needed.values(), default=0)
    costs = [found.costs[i] for i in needed]
    known = [c for c in costs if c is not None]
    cost = sum(n * c for n, c in zip(needed.values(), known, strict=False))
    return Forecast(needed[first], sum(needed.values()), cost if len(known) == len(costs) else None)
