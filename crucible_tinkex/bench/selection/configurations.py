"""What a conclusion is drawn from: configurations with their values per seed, as one table.

Pure numbers; where they come from is the sweep's matter. Values that are not finite count as not
measured. Configurations that were stopped, failed or seen with one seed do not compete, but are
named: what was left out is part of what is claimed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from crucible_tinkex.bench.intervals import Floats
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import Direction

Status = Literal["complete", "unfinished", "stopped", "failed", "lost"]
LEAST_SEEDS = 2
"""With fewer a configuration does not compete."""
FIRST = 0.9
"""Of alpha, for those of a sweep's first declaration; what may be added later has the rest. Their
intervals are 1 to 3 % wider than if nothing could come (5 to 20 seeds)."""


@dataclass(frozen=True)
class Configuration:
    """One setting, and what it reached with each seed."""

    name: str
    values: Mapping[int, float]
    """Seed to value, in the metric's unit."""
    cost: float | None = None
    """Of one more seed, in whatever unit all are given; decides who is the cheaper."""
    status: Status = "complete"
    """Only complete ones compete."""
    missing_seeds: Sequence[int] = ()
    """Asked for and never to come (failed): they are not asked for again."""
    reason: str = ""
    """Why it was stopped or failed, in words."""
    batch: int = 0
    """Of those that were asked for together, before any of them was judged; what was added to a
    sweep later has a higher one."""
    peers: int = 0
    """How many its batch will have in all, where they come one by one; 0: those that are given."""

    @cached_property
    def measured(self) -> dict[int, float]:
        return {seed: v for seed, v in sorted(self.values.items()) if math.isfinite(v)}


@dataclass(frozen=True)
class LeftOut:
    """A configuration that does not compete, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Those that compete: `values` (configurations, seeds), higher is better, NaN where missing."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Floats
    costs: tuple[float | None, ...]
    shares: Floats
    """Of alpha, one each."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> Floats:
        return np.asarray(np.isfinite(self.values).sum(axis=1))


def table(
    configurations: Sequence[Configuration],
    *,
    direction: Direction,
    chosen_by: Sequence[int] = (),
) -> Table:
    """`chosen_by`: seeds by which the competitors were chosen from more; where two others are there
    for two of them, those seeds are left aside, because they flatter whom they chose. Raises
    `ConfigError` for two of one name."""
    names = Counter(c.name for c in configurations)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ConfigError(f"two configurations are called {twice[0]!r}; names must be distinct")
    choosing = set(chosen_by)
    fresh = {
        c.name: {s: v for s, v in c.measured.items() if s not in choosing} for c in configurations
    }
    aside = bool(chosen_by) and sum(len(v) >= LEAST_SEEDS for v in fresh.values()) >= 2
    measured = fresh if aside else {c.name: c.measured for c in configurations}
    left = tuple(
        LeftOut(c.name, _why_not(c, len(measured[c.name])))
        for c in configurations
        if c.status != "complete" or len(measured[c.name]) < LEAST_SEEDS
    )
    out = {one.name for one in left}
    rows = [c for c in configurations if c.name not in out]
    notes = []
    if aside:
        listed = ", ".join(str(s) for s in sorted(chosen_by))
        notes.append(f"judged on fresh seeds only; the competitors were chosen by seed {listed}")
    elif chosen_by and len(rows) > 1:
        notes.append("judged on the seeds that also chose the competitors: values flatter")
    seeds = sorted({s for c in rows for s in measured[c.name]})
    values = _aligned([measured[c.name] for c in rows], seeds)
    if len(rows) > 1 and not _paired(values):
        most = max(len(measured[c.name]) for c in rows)
        values = _aligned([dict(enumerate(measured[c.name].values())) for c in rows], range(most))
        seeds = list(range(most))
        notes.append("no seeds are shared, so nothing is paired: differences are less certain")
    return Table(
        tuple(c.name for c in rows),
        tuple(seeds),
        -values if direction == "min" else values,
        tuple(c.cost for c in rows),
        shares(configurations, rows),
        left,
        tuple(notes),
    )


def shares(configurations: Sequence[Configuration], rows: Sequence[Configuration]) -> Floats:
    """Of alpha, for each of `rows`, which are those of `configurations` that compete. The first
    batch has `FIRST` in all, later ones 1/2, 1/6, 1/12, ... of the rest, which add up to it (alpha
    spending in its simplest form: Foster and Stine 2008, doi 10.1111/j.1467-9868.2007.00643.x,
    without returns). A share only falls while its batch fills; `peers` keeps it the same."""
    sizes = Counter(c.batch for c in rows)
    for c in configurations:
        sizes[c.batch] = max(sizes[c.batch], c.peers)
    batches = sorted(sizes)
    # Until there are two nothing can be claimed, so what follows alone spends nothing twice.
    first = [n for i, n in enumerate(batches) if not i or sum(sizes[m] for m in batches[:i]) < 2]
    together = sum(sizes[n] for n in first)
    of = {n: FIRST / max(together, 2) for n in first}
    for place, n in enumerate(batches[len(first) :], start=1):
        of[n] = (1 - FIRST) / (place * (place + 1)) / max(sizes[n], 1)
    return np.array([of[c.batch] for c in rows])


def _why_not(configuration: Configuration, seeds: int) -> str:
    if configuration.status != "complete":
        reason = f": {configuration.reason}" if configuration.reason else ""
        return f"{configuration.status}{reason}"
    if configuration.measured and not seeds:
        return "no leader of the search: it ran none of the fresh seeds"
    return "seen with one seed only" if seeds else "never measured"


def _aligned(rows: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> Floats:
    return np.array([[row.get(s, np.nan) for s in seeds] for row in rows]).reshape(
        len(rows), len(seeds)
    )


def _paired(values: Floats) -> bool:
    """Whether two seeds, at least, were run by two configurations or more. Else the values are
    independent and may be set against each other in any order."""
    return bool((np.isfinite(values).sum(axis=0) > 1).sum() >= 2)
