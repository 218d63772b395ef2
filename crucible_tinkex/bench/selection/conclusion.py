"""`conclude`: which configuration is best, how sure that is, and what would make it sure.

The verdict rests on confidence sequences (`contest`), so it may be asked for after every run, and
the sweep may be stopped by it. It is one of

- winner: one is better than every other;
- tie: several are not separable, or are told apart by less than the indifference zone, and one of
  them is not worse than the best by more than it; the cheapest such is taken;
- open: more seeds are needed; how many is forecast;
- nothing: there is nothing to compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from crucible_tinkex.bench.classical import dunnett, holm, omnibus, two_sided
from crucible_tinkex.bench.intervals import Floats, e_value
from crucible_tinkex.bench.selection import wording
from crucible_tinkex.bench.selection.configurations import Configuration, Table, table
from crucible_tinkex.bench.selection.contest import Contest, Duels, contest, duels, level_of
from crucible_tinkex.bench.selection.results import Conclusion, Estimate, Kind, Rival, Terms
from crucible_tinkex.bench.selection.seeds import forecast
from crucible_tinkex.bench.selection.winner import chosen_value
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import Direction, better
from crucible_tinkex.metrics import known as known_metric

UNNAMED = "value"
MOST_TAKERS = 50
"""So many cheaper configurations are checked for being good enough, the cheapest first."""


def terms(
    metric: str = UNNAMED,
    direction: Direction | None = None,
    zone: float | None = None,
    alpha: float = 0.05,
    looks: int = 1,
    cost_unit: str = "",
    share: float = 1.0,
) -> Terms:
    """With the catalogue's direction and indifference zone of the metric where none is given; of
    numbers without a name, "min" and 0. Raises `ConfigError` for what is out of range, and where
    nobody says which way a metric is better."""
    known = known_metric(metric)
    direction = better(metric, direction or ("min" if metric == UNNAMED else None))
    zone = zone if zone is not None else (known.indifference if known else 0.0)
    if not (math.isfinite(zone) and zone >= 0):
        raise ConfigError(f"zone is {zone}; it must be zero or a positive difference of the metric")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}; it must be between 0 and 1, for example 0.05")
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must be above 0, and 1 at most")
    if looks < 1:
        raise ConfigError(f"looks is {looks}; it must be at least 1")
    return Terms(metric, direction, zone, alpha, looks, cost_unit, share)


def conclude(
    configurations: Sequence[Configuration],
    agreed: Terms,
    *,
    control: str | None = None,
    chosen_by: Sequence[int] = (),
) -> Conclusion:
    """What may be said of these. `chosen_by`: seeds by which they were chosen from more; fresh ones
    alone are used where there are enough. Looking again after more seeds, or after configurations
    were added (with a higher `batch`), is free; looking at several rungs needs `looks` in the
    terms. Raises `ConfigError` for an unknown control, or two
    configurations of one name."""
    if control is not None and control not in {c.name for c in configurations}:
        raise ConfigError(f"there is no configuration {control!r} to be the control")
    found = table(configurations, direction=agreed.direction, chosen_by=chosen_by)
    if len(found.names) < 2:
        return _nothing(agreed, configurations, found)
    result = contest(found.values, zone=agreed.zone, alpha=agreed.level, shares=found.shares)
    first = int(result.leader)
    close = ~result.duels.beaten | result.duels.within(agreed.zone)
    tied = [first, *(int(i) for i in np.flatnonzero(close) if i != first)]
    taken = _taken(found, result, tied, agreed)
    kind: Kind = "winner" if tied == [first] else "open" if taken is None else "tie"
    more = forecast(found, result, agreed) if kind == "open" else None
    value = _value(found, result, len(tied), agreed)
    names = found.names
    return Conclusion(
        kind,
        wording.verdict(
            kind,
            agreed,
            leader=names[first],
            tied=[names[i] for i in tied],
            take=None if taken is None else names[taken],
            cheaper=taken is not None and found.costs[taken] is not None,
            competing=len(names),
            value=value,
            more=more,
        ),
        agreed,
        leader=names[first],
        take=None if taken is None else names[taken],
        not_separable=tuple(names[i] for i in tied),
        value=value,
        mean=agreed.sign * float(np.nanmean(found.values[first])),
        rivals=_rivals(found, result.duels, first, agreed),
        against_control=_against_control(found, result, control, agreed),
        omnibus=omnibus(found.values),
        more=more,
        left_out=found.left_out,
        notes=(*found.notes, *wording.notes(found, result, control, agreed.zone)),
    )


def _nothing(agreed: Terms, configurations: Sequence[Configuration], found: Table) -> Conclusion:
    seen = {c.name: list(c.measured.values()) for c in configurations if c.status == "complete"}
    means = {name: fmean(values) for name, values in seen.items() if values}
    best = max(means, key=lambda name: agreed.sign * means[name], default=None)
    value = None
    if best is not None:
        value = Estimate(means[best], -math.inf, math.inf, len(seen[best]), "plain mean")
    most = max((len(values) for values in seen.values()), default=0)
    level = sum(best is not None and mean == means[best] for mean in means.values())
    return Conclusion(
        "nothing",
        wording.nothing(len(configurations), len(means), most, best, level),
        agreed,
        leader=best,
        take=None,
        not_separable=tuple(means),
        value=value,
        mean=None if best is None else means[best],
        left_out=found.left_out,
        notes=found.notes,
    )


def _taken(found: Table, result: Contest, tied: Sequence[int], agreed: Terms) -> int | None:
    """The cheapest that is not worse than any by more than the zone; the leader if it alone is."""
    first = tied[0]
    if len(tied) == 1:
        return first
    own = found.costs[first]
    dearest = math.inf if own is None else own
    costs = {i: c for i in tied if (c := found.costs[i]) is not None and c < dearest}
    for i in sorted(costs, key=lambda i: costs[i])[:MOST_TAKERS]:
        against = _duels(found, result, i, agreed)
        if not (against.may_lead_by > agreed.zone).any():
            return i
    return None if result.open.any() else first


def _value(found: Table, result: Contest, among: int, agreed: Terms) -> Estimate:
    chosen = chosen_value(
        found.values, result.leader, among=among, alpha=agreed.alpha, known=result.spread
    )
    low, high = sorted((agreed.sign * float(chosen.low), agreed.sign * float(chosen.high)))
    alone = int(chosen.alone)
    seeds = int(np.isfinite(found.values[int(result.leader)]).sum())
    about = (
        f"from {alone} seeds that took no part in the choice"
        if alone
        else "each seed read for the choice of the others"
    )
    value = agreed.sign * float(chosen.value)
    return Estimate(value, low, high, alone or seeds, about, unseen=alone > 0)


def _rivals(found: Table, against: Duels, reference: int, agreed: Terms) -> tuple[Rival, ...]:
    """All but the reference, the best first."""
    others = [i for i in range(len(found.names)) if i != reference]
    p = holm(_single_look(against)[others])
    return _described(found, against, reference, others, agreed, p)


def _duels(found: Table, result: Contest, reference: int, agreed: Terms) -> Duels:
    return duels(
        found.values,
        np.array(reference),
        alpha=agreed.level,
        known=result.spread,
        shares=found.shares,
    )


def _single_look(against: Duels) -> Floats:
    t = _t(against)
    known = np.isfinite(t) & (against.df > 0)
    return np.where(known, two_sided(np.where(known, t, 0.0), np.maximum(against.df, 1)), 1.0)


def _t(against: Duels) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = against.lead * np.sqrt(against.shared) / against.sd
    return np.asarray(np.where((against.sd > 0) & (against.shared > 0), t, np.nan))


def _against_control(
    found: Table, result: Contest, control: str | None, agreed: Terms
) -> tuple[Rival, ...]:
    if control not in found.names:
        return ()
    reference = found.names.index(control)
    against = _duels(found, result, reference, agreed)
    others = [i for i in range(len(found.names)) if i != reference]
    variance, df = float(result.spread.pooled[0]), float(result.spread.most[0])
    if not (variance > 0 and df > 0):
        return _described(found, against, reference, others, agreed, np.ones(len(others)))
    # The common variance, as Dunnett has it; two seeds' means differ by twice that of one.
    t = against.lead[others] / np.sqrt(2 * variance / np.maximum(against.shared[others], 1))
    p = dunnett(t, df, found.counts[others], float(found.counts[reference]))
    return _described(found, against, reference, others, agreed, p)


def _described(
    found: Table,
    against: Duels,
    reference: int,
    others: Sequence[int],
    agreed: Terms,
    p: Floats,
) -> tuple[Rival, ...]:
    means, counts = agreed.sign * np.nanmean(found.values, axis=1), found.counts
    t = _t(against)
    evidence = e_value(np.nan_to_num(t), against.shared, np.maximum(against.df, 1e-9))
    shares = np.minimum(found.shares, found.shares[reference])
    always = np.minimum(1.0, 1 / (level_of(1.0, shares) * evidence))
    low, high = against.lead - against.half_width, against.lead + against.half_width
    rivals = [
        Rival(
            found.names[i],
            float(means[i]),
            int(counts[i]),
            int(against.shared[i]),
            float(against.lead[i]),
            float(low[i]),
            float(high[i]),
            float(always[i]) if np.isfinite(t[i]) and against.df[i] > 0 else 1.0,
            float(p[place]),
            bool(low[i] > 0 or high[i] < 0),
            bool(high[i] <= agreed.zone),
        )
        for place, i in enumerate(others)
    ]
    return tuple(sorted(rivals, key=lambda rival: rival.behind_by))
