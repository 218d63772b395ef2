"""One configuration against every other one, over the seeds that they share.

Differences are paired by seed and judged by confidence sequences with moderated variances, so what
is said here holds at every look. A winner has to beat all others (an intersection-union test:
Berger 1982, Technometrics 24(4)), so who is declared wrongly was declared against one that is as
good, by one side of one interval, however many others there are or come later. Each may be declared
wrongly with its own share of alpha, and the shares of all add up to 1 at most, whatever is added to
the sweep (`configurations.shares`). So an interval of both sides has twice the level of its share:
by symmetry each side errs half as often (but for paths that leave by both sides: where the interval
ends, the posterior probability of the other sign is below .2 %). The same side of the same interval
errs where one is wrongly called good enough, so winners and ties together err with alpha at most.
Nothing here grows with the square of the configurations.

Values have shape (..., configurations, seeds), *higher is better*, NaN where not measured; leading
axes are separate sweeps, so simulations of a thousand sweeps run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crucible_tinkex.bench.intervals import Bools, Floats, Indices, boundary
from crucible_tinkex.bench.selection.configurations import FIRST
from crucible_tinkex.bench.selection.spread import Prior, effects, prior


@dataclass(frozen=True)
class Duels:
    """A reference against each configuration; arrays of shape (..., configurations)."""

    lead: Floats
    """Mean over the shared seeds of reference - other; 0 for itself."""
    sd: Floats
    """Moderated standard deviation of those differences."""
    shared: Floats
    """How many seeds both have."""
    df: Floats
    half_width: Floats
    """Of the confidence sequence around `lead`; infinite where nothing can be said."""
    itself: Bools

    @property
    def beaten(self) -> Bools:
        """Which are worse than the reference, beyond doubt."""
        return np.asarray(~self.itself & (self.lead - self.half_width > 0))

    def within(self, zone: float) -> Bools:
        """Which are proved to be worse than the reference by `zone` at most."""
        return np.asarray(~self.itself & (self.lead + self.half_width <= zone))

    @property
    def may_lead_by(self) -> Floats:
        """By how much each may be better than the reference, at most."""
        return np.asarray(np.where(self.itself, 0.0, self.half_width - self.lead))


def leader(values: Floats) -> Indices:
    """The index of the best configuration by its mean, seeds' effects taken out; shape (...)."""
    return _best(effects(values)[0][..., 0])


def _best(means: Floats) -> Indices:
    return np.asarray(np.argmax(np.where(np.isfinite(means), means, -np.inf), axis=-1))


def equal_shares(values: Floats) -> Floats:
    """Of configurations that were all there from the beginning; shape (..., 1)."""
    competing = np.isfinite(values).any(axis=-1).sum(axis=-1, keepdims=True)
    return np.asarray(FIRST / np.maximum(competing, 2))


def level_of(alpha: float, share: Floats) -> Floats:
    """Of an interval of both sides, of which one counts."""
    return np.asarray(2 * alpha * share)


def duels(
    values: Floats,
    reference: Indices,
    *,
    alpha: float,
    known: Prior | None = None,
    shares: Floats | None = None,
) -> Duels:
    """`reference`, indices of shape (...), against all. `known` saves estimating the variances,
    `shares` (one per configuration) are those of a sweep that grew. An interval is of both, so it
    has the smaller of their shares."""
    known = known or prior(values)
    index = np.asarray(reference)[..., None, None]
    chosen = np.take_along_axis(values, index, axis=-2)
    differences = chosen - values
    there = np.isfinite(differences)
    shared = there.sum(axis=-1).astype(float)
    filled = np.where(there, differences, 0.0)
    count = np.maximum(shared, 1)
    lead = filled.sum(axis=-1) / count
    squares = (np.where(there, filled - lead[..., None], 0.0) ** 2).sum(axis=-1)
    own_df = np.maximum(shared - 1, 0)
    total = own_df + known.df
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (squares + known.df * 2 * known.variance) / total
    variance = np.where(total > 0, variance, 0.0)
    df = np.minimum(total, known.most)
    itself = np.arange(values.shape[-2]) == index[..., 0]
    if shares is None:
        level = level_of(alpha, equal_shares(values))
    else:
        level = level_of(alpha, np.minimum(shares, shares[np.asarray(reference)][..., None]))
    sd = np.sqrt(variance)
    with np.errstate(invalid="ignore"):
        half = boundary(shared, df, level) * np.where(sd > 0, sd, np.inf) / np.sqrt(count)
    return Duels(lead, sd, shared, df, half, itself)


@dataclass(frozen=True)
class Contest:
    """The leader against all others, and who may still be better than it by more than matters."""

    leader: Indices
    duels: Duels
    open: Bools
    """Rivals that more seeds could still show to be better than the leader by more than the zone;
    none: the leader is the best, or as good as the best."""
    spread: Prior

    @property
    def varies(self) -> bool:
        """Whether anything depends on the seed beyond what it does to all alike."""
        return bool(np.any(self.duels.sd[~self.duels.itself] > 0))


def contest(values: Floats, *, zone: float, alpha: float, shares: Floats | None = None) -> Contest:
    """`zone`: differences up to it do not matter (the indifference zone of ranking and selection,
    Bechhofer 1954; Kim and Nelson 2001, doi 10.1145/502109.502111). A seed that only one has run
    counts for nothing here, so that it can tell that one's value without optimism."""
    together = np.isfinite(values).sum(axis=-2, keepdims=True) > 1
    values = np.where(together, values, np.nan)
    fitted = effects(values)
    known = prior(values, fitted)
    first = _best(fitted[0][..., 0])
    found = duels(values, first, alpha=alpha, known=known, shares=shares)
    competing = np.isfinite(values).any(axis=-1)
    return Contest(first, found, np.asarray(competing & (found.may_lead_by > zone)), known)
