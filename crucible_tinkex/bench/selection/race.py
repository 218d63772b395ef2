"""Who may still be the best by more than the zone: what all others say of each.

For every pair, the likelihood that one is better by the zone is set against that the other is (a
sequential probability ratio test, Wald 1945). Where j is the best by the zone or more, the ratio of
any other to it is a test martingale, and so is their weighted mean: when it reaches 1 / alpha, j is
out. And when the odds of all others together against the leader have come down to those of alpha,
the leader is taken. With equal variances that are known this is the procedure of Frazier (2014,
doi 10.1287/opre.2014.1282), which selects the best with 1 - alpha at least, and wastes next to
nothing in the worst case, where all others are worse by just the zone. Variances are estimated
here, so a ratio is shrunk to what it is worth on so many degrees of freedom (the constant of Kim
and Nelson 2001, doi 10.1145/502109.502111). That it holds so is simulated; where it does not, says
docs/statistics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crucible_tinkex.bench.intervals import Bools, Floats, Indices, log_ratio
from crucible_tinkex.bench.selection.spread import Prior, paired

HEARD = 64
"""Only what so many say, the best by their means, is set against each: work does not grow with the
square of the configurations. Evidence not heard may keep one in, and never puts one out."""


@dataclass(frozen=True)
class Race:
    """Of each sweep."""

    out: Bools
    """Who is not the best by more than the zone: shape (..., configurations)."""
    leader: Indices
    """The best by its mean of those that are in: shape (...)."""
    settled: Bools
    """Whether the leader is the best, if any is by more than the zone: shape (...)."""
    pressing: Bools
    """Who has more than an equal part of the odds that may be left: another seed of the others
    would hardly help to settle it. Shape (..., configurations)."""


def race(
    values: Floats, means: Floats, *, zone: float, alpha: float, shares: Floats, known: Prior
) -> Race:
    """`means` of shape (..., configurations), -inf of who does not compete. `shares` of alpha:
    what each may err with. In what is said of one, the others weigh by their shares of all but its
    own, so those that are added later take nothing from what was said before. With a zone of zero
    nobody is ever out."""
    competing = np.isfinite(means)
    if not zone > 0:
        nobody = np.zeros_like(competing)
        return Race(nobody, _best(means), np.asarray(nobody.any(axis=-1)), competing)
    heard = np.argsort(-means, axis=-1)[..., :HEARD]
    nats = _nats(values, heard, zone, known)
    shares = np.broadcast_to(shares, means.shape)
    itself = heard[..., None] == np.arange(means.shape[-1])
    ratios = np.where(itself, 0.0, np.exp(nats))
    weighed = (ratios * np.take_along_axis(shares, heard, axis=-1)[..., None]).sum(axis=-2)
    out = competing & (weighed / (1 - shares) >= 1 / alpha)
    out &= (out != competing).any(axis=-1, keepdims=True)  # somebody has to lead
    first = _best(np.where(out, -np.inf, means))[..., None]

    odds = np.exp(-_nats(values, first, zone, known)[..., 0, :])
    odds = np.where(out, np.minimum(odds, 1 / np.maximum(ratios.sum(axis=-2), 1.0)), odds)
    odds = odds * np.maximum(1.0, shares / np.take_along_axis(shares, first, axis=-1))
    others = competing & (np.arange(means.shape[-1]) != first)
    odds = np.where(others, odds, 0.0)
    enough = alpha / (1 - alpha)
    settled = np.asarray(odds.sum(axis=-1) <= enough)
    pressing = np.asarray(others & (odds > _part(odds, enough)))
    return Race(out, first[..., 0], settled, pressing)


def _part(odds: Floats, enough: float) -> Floats:
    """Of what may be left of all odds together, those that are below an equal part take only what
    they have, and the rest is shared equally again: what each of these may have, shape (..., 1)."""
    rising = np.sort(odds, axis=-1)
    left = enough - (np.cumsum(rising, axis=-1) - rising)
    part = left / np.arange(odds.shape[-1], 0, -1)
    above = np.argmax(rising > part, axis=-1)[..., None]
    return np.asarray(np.take_along_axis(part, above, axis=-1))


def _nats(values: Floats, chosen: Indices, zone: float, known: Prior) -> Floats:
    """For each of `chosen`, of shape (..., m), rather than each of all: shape (..., m, k)."""
    rows = np.take_along_axis(values, chosen[..., None], axis=-2)
    each = Prior(*(x[..., None] for x in (known.variance, known.df, known.pooled, known.most)))
    found = paired(rows[..., :, None, :], values[..., None, :, :], each)
    return log_ratio(found.lead, found.variance, found.shared, found.df, zone)


def _best(means: Floats) -> Indices:
    return np.asarray(np.argmax(means, axis=-1))
