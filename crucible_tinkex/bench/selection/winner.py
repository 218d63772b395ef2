"""The value of a configuration that was chosen for its value.

The mean of the best of many looks better than it is, by about one standard deviation of the seeds;
and one that led when the seeds were enough to stop had luck. Two ways out, neither with optimism:

- seeds that the chosen one has run alone took no part in the choice; they tell its value;
- without such: each seed is left out in turn, the best is chosen by the others, and its value is
  read on the seed left out (cross-validated selection: Stone 1974, J. R. Stat. Soc. B 36;
  Tibshirani and Tibshirani 2009, doi 10.1214/08-AOAS224). Exact where the number of seeds was fixed
  before; where several are as good as the best, it speaks for the choice among them.

Values have shape (..., configurations, seeds), higher is better, as in `contest`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from crucible_tinkex.bench.intervals import Floats, Indices
from crucible_tinkex.bench.selection.contest import leader
from crucible_tinkex.bench.selection.spread import Prior, prior

ENOUGH_ALONE = 2
"""Seeds run by the chosen one alone, from which its value is read from them only."""


@dataclass(frozen=True)
class ChosenValue:
    """Arrays of shape (...), one entry per sweep."""

    value: Floats
    low: Floats
    high: Floats
    mean: Floats
    """The plain mean of all its seeds, which flatters."""
    alone: Floats
    """How many seeds the value was read from that took no part in the choice; 0 if it was
    cross-validated."""


def chosen_value(
    values: Floats,
    chosen: Indices,
    *,
    among: Indices | int,
    alpha: float,
    known: Prior | None = None,
) -> ChosenValue:
    """What configuration `chosen` is worth on a new seed, with an interval of 1 - `alpha`.

    From seeds run alone: their mean, Student's interval with the spread of all its seeds about the
    means of those alone and of the others. Else the interval is Student's around its plain mean,
    with the lower end moved by as much as the best of `among` equal configurations can flatter
    itself: the part of the error that differs between configurations is held for all of them at
    once (locally simultaneous inference, Zrnic and Fithian 2022, arXiv 2212.09009, in its simplest
    form). Infinite with fewer than two seeds.
    """
    known = known or prior(values)
    own = np.take_along_axis(values, np.asarray(chosen)[..., None, None], axis=-2)[..., 0, :]
    count, mean, variance = _moments(own)
    degrees = np.maximum(count - 1, 1)
    once = special.stdtrit(degrees, 1 - alpha / 2)
    enough = (count > 1) & (variance > 0)

    df = np.maximum(known.most[..., 0], 1)
    many = special.stdtrit(df, 1 - alpha / (2 * np.maximum(among, 1)))
    flattery = (many**2 - special.stdtrit(df, 1 - alpha / 2) ** 2) * known.variance[..., 0]
    up = np.sqrt(once**2 * variance / np.maximum(count, 1))
    down = np.sqrt(up**2 + flattery / np.maximum(count, 1))
    readings, seen, _ = _moments(unseen(values))
    value = np.where(readings > 0, seen, mean)

    others = np.isfinite(values).sum(axis=-2) > 1
    alone, proof, _ = _moments(np.where(others, np.nan, own))
    proved = alone >= ENOUGH_ALONE
    margin = _margin(np.where(others, own, np.nan), np.where(others, np.nan, own), alpha)
    value = np.where(proved, proof, value)
    low = np.where(enough, np.where(proved, proof - margin, mean - down), -np.inf)
    high = np.where(enough, np.where(proved, proof + margin, mean + up), np.inf)
    return ChosenValue(np.clip(value, low, high), low, high, mean, np.where(proved, alone, 0))


def _margin(shared: Floats, alone: Floats, alpha: float) -> Floats:
    """Of Student's interval around the mean of the seeds run `alone`. The spread is that within
    both groups of seeds: were it that around one mean of both, what moves the estimate would widen
    its own interval, and it would cover too often (97.5 % instead of 95)."""
    (many, _, apart), (few, _, close) = _moments(shared), _moments(alone)
    df = np.maximum(many - 1, 0) + np.maximum(few - 1, 0)
    squares = np.maximum(many - 1, 0) * apart + np.maximum(few - 1, 0) * close
    quantile = special.stdtrit(np.maximum(df, 1), 1 - alpha / 2)
    margin = quantile * np.sqrt(squares / np.maximum(df, 1) / np.maximum(few, 1))
    return np.asarray(np.where(margin > 0, margin, np.inf))


def _moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Count, mean and variance along the last axis of what was measured."""
    there = np.isfinite(values)
    count = there.sum(axis=-1)
    mean = np.where(there, values, 0.0).sum(axis=-1) / np.maximum(count, 1)
    squares = (np.where(there, values - mean[..., None], 0.0) ** 2).sum(axis=-1)
    return count, np.asarray(mean), np.asarray(squares / np.maximum(count - 1, 1))


def unseen(values: Floats) -> Floats:
    """What each seed says of the configuration that the other seeds would choose: shape (..., n).
    NaN where that one was not measured with this seed, or where no other seed is left."""
    n = values.shape[-1]
    if n < 2:
        return np.full((*values.shape[:-2], n), np.nan)
    others = np.where(np.eye(n, dtype=bool)[:, None, :], np.nan, values[..., None, :, :])
    chosen = leader(others)  # by all seeds but one: (..., n)
    read = np.take_along_axis(values, chosen[..., None, :], axis=-2)[..., 0, :]
    return np.asarray(np.where(np.isfinite(others).any(axis=(-2, -1)), read, np.nan))
