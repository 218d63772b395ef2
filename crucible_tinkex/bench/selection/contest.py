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

The `race` answers another question, which of all would be taken, with alpha of its own: it says
when seeds suffice, and never that somebody is worse.

Values have shape (..., configurations, seeds), *higher is better*, NaN where not measured; leading
axes are separate sweeps, so simulations of a thousand sweeps run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crucible_tinkex.bench.intervals import Bools, Floats, Indices, boundary
from crucible_tinkex.bench.selection.configurations import FIRST
from crucible_tinkex.bench.selection.race import race
from crucible_tinkex.bench.selection.spread import Prior, effects, paired, prior


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
    means = effects(values)[0][..., 0]
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
    found = paired(chosen, values, known)
    itself = np.arange(values.shape[-2]) == index[..., 0]
    if shares is None:
        level = level_of(alpha, equal_shares(values))
    else:
        level = level_of(alpha, np.minimum(shares, shares[np.asarray(reference)][..., None]))
    sd = np.sqrt(found.variance)
    with np.errstate(invalid="ignore"):
        half = boundary(found.shared, found.df, level) * np.where(sd > 0, sd, np.inf)
        half = half / np.sqrt(np.maximum(found.shared, 1))
    return Duels(found.lead, sd, found.shared, found.df, half, itself)


@dataclass(frozen=True)
class Contest:
    """The leader against all others, and who may still be better than it by more than matters."""

    leader: Indices
    duels: Duels
    open: Bools
    """Rivals that more seeds could still show to be better than the leader by more than the zone;
    none: with 1 - alpha at least the leader is the best, if any is by more than the zone."""
    pressing: Bools
    """Those of the open ones that another seed is best spent on."""
    spread: Prior

    @property
    def varies(self) -> bool:
        """Whether anything depends on the seed beyond what it does to all alike."""
        return bool(np.any(self.duels.sd[~self.duels.itself] > 0))


def contest(values: Floats, *, zone: float, alpha: float, shares: Floats | None = None) -> Contest:
    """`zone`: differences up to it do not matter (the indifference zone of ranking and selection,
    Bechhofer 1954). A rival is open until its confidence sequence or the `race` says otherwise: the
    one is the faster where differences are far larger than the zone, the other where they are not.
    A seed that only one has run counts for nothing here, so that it can tell that one's value
    without optimism."""
    together = np.isfinite(values).sum(axis=-2, keepdims=True) > 1
    values = np.where(together, values, np.nan)
    fitted = effects(values)
    known = prior(values, fitted)
    means = np.where(np.isfinite(fitted[0][..., 0]), fitted[0][..., 0], -np.inf)
    each = equal_shares(values) if shares is None else shares
    run = race(values, means, zone=zone, alpha=alpha, shares=each, known=known)
    found = duels(values, run.leader, alpha=alpha, known=known, shares=shares)
    may_win = np.isfinite(means) & (found.may_lead_by > zone)
    is_open = may_win & ~run.out & ~run.settled[..., None]
    pressing = is_open & run.pressing
    pressing = np.where(pressing.any(axis=-1, keepdims=True), pressing, is_open)
    return Contest(run.leader, found, np.asarray(is_open), np.asarray(pressing), known)
