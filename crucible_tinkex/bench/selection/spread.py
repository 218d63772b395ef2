"""How much configurations differ from seed to seed: own variance, helped by that of the others.

Two or three seeds say little about one configuration's variance; all configurations together say
much. The moderated variance weighs both by what the data say of how alike the variances are
(empirical Bayes, Smyth 2004, doi 10.2202/1544-6115.1027): equal variances are pooled, different
ones stay apart. All functions take values of shape (..., configurations, seeds) with NaN for what
was not measured, and treat the leading axes as separate sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from crucible_tinkex.bench.intervals import Floats

_CLOSE = 1e-9
"""Relative to the values: differences below are rounding, not spread."""
_FREE = 1e-12
"""Relative to the largest eigenvalue: those below are zero."""


def effects(values: Floats) -> tuple[Floats, Floats]:
    """Least squares of `configuration + seed`: shapes (..., k, 1) and (..., 1, n).

    Where all configurations have all seeds, these are plain means; else a configuration is not
    favoured for having met the easier seeds. The seeds' effects have mean zero over the cells.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    if there.all():
        seeds = filled.mean(axis=-2, keepdims=True)
    else:
        seeds = _seeds(filled, there.astype(float))
    cells = np.maximum(there.sum(axis=(-2, -1), keepdims=True), 1)
    seeds = seeds - (seeds * there).sum(axis=(-2, -1), keepdims=True) / cells
    count = there.sum(axis=-1, keepdims=True)
    means = (filled - seeds * there).sum(axis=-1, keepdims=True) / np.maximum(count, 1)
    return np.where(count > 0, means, np.nan), seeds


def _seeds(filled: Floats, there: Floats) -> Floats:
    """The normal equations with the configurations eliminated: one row per seed, so they stay small
    however many configurations there are. Their level is free, and so is what no seed connects."""
    weights = there / np.maximum(there.sum(axis=-1, keepdims=True), 1)
    transposed = np.swapaxes(there, -1, -2)
    matrix = -transposed @ weights
    diagonal = np.arange(there.shape[-1])
    matrix[..., diagonal, diagonal] += there.sum(axis=-2)
    right = filled.sum(axis=-2) - (weights * filled.sum(axis=-1, keepdims=True)).sum(axis=-2)
    # By eigenvectors, as `pinv` does, which takes three times as long for so few seeds.
    values, vectors = np.linalg.eigh(matrix)
    is_free = values <= _FREE * values[..., -1:]
    inverse = np.where(is_free, 0.0, 1 / np.where(is_free, 1.0, values))
    along = (np.swapaxes(vectors, -1, -2) @ right[..., None]) * inverse[..., None]
    return np.asarray(np.swapaxes(vectors @ along, -1, -2))


@dataclass(frozen=True)
class Prior:
    """What all configurations say of one's variance: it is near `variance`, as sure as if `df`
    more degrees of freedom had been seen. Each of shape (..., 1)."""

    variance: Floats
    df: Floats
    pooled: Floats
    """As if all configurations had the same variance."""
    most: Floats
    """Degrees of freedom of all residuals together: no variance is known better than that."""


def prior(values: Floats, fitted: tuple[Floats, Floats] | None = None) -> Prior:
    """Of the variance of one value about its configuration and seed; `fitted` saves finding their
    `effects`."""
    there = np.isfinite(values)
    configurations, seeds = fitted or effects(values)
    residuals = np.where(there, values - configurations - seeds, 0.0)
    own = np.maximum(there.sum(axis=-1) - 1.0, 0.0)
    rows = there.any(axis=-1).sum(axis=-1, keepdims=True)
    columns = there.any(axis=-2).sum(axis=-1, keepdims=True)
    cells = there.sum(axis=(-2, -1))[..., None]
    most = np.maximum(cells - rows - columns + 1.0, 0.0)
    df = own * most / np.maximum(own.sum(axis=-1, keepdims=True), 1.0)
    squares = (residuals**2).sum(axis=-1)
    floor = (_CLOSE * np.max(np.abs(np.where(there, values, 0.0)), axis=(-2, -1))[..., None]) ** 2
    used = (df > 0) & (squares > floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.where(most > 0, squares.sum(axis=-1, keepdims=True) / most, 0.0)
        pooled = np.where(pooled > floor, pooled, 0.0)
        half = np.where(used, df / 2, 1.0)
        logs = np.where(used, np.log(squares / (2 * half)) - special.psi(half) + np.log(half), 0.0)
        count = used.sum(axis=-1, keepdims=True)
        centre = logs.sum(axis=-1, keepdims=True) / count
        noise = np.where(used, special.zeta(2, half), 0.0).sum(axis=-1, keepdims=True) / count
        scatter = (np.where(used, logs - centre, 0.0) ** 2).sum(axis=-1, keepdims=True)
        beyond = scatter / (count - 1) - noise
        apart = (count > 1) & (beyond > 0)
        if not apart.any():
            return Prior(pooled, most, pooled, most)
        own_df = 2 * _inverse_trigamma(np.where(apart, beyond, 1.0))
        typical = np.exp(centre + special.psi(own_df / 2) - np.log(own_df / 2))
    return Prior(np.where(apart, typical, pooled), np.where(apart, own_df, most), pooled, most)


def _inverse_trigamma(y: Floats) -> Floats:
    """Newton's method on 1 / trigamma, which is nearly straight (Smyth 2004, appendix). Trigamma is
    Hurwitz's zeta of order 2, its derivative -2 times that of order 3."""
    x = 0.5 + 1 / y
    for _ in range(12):
        trigamma = special.zeta(2, x)
        x = x - trigamma * (1 - trigamma / y) / (2 * special.zeta(3, x))
    return np.asarray(x)


@dataclass(frozen=True)
class Paired:
    """Differences of two configurations over the seeds that both have; arrays of one shape."""

    lead: Floats
    """Their mean."""
    variance: Floats
    """Of one difference, moderated: of these themselves, helped by the prior."""
    shared: Floats
    """How many seeds."""
    df: Floats


def paired(chosen: Floats, values: Floats, known: Prior) -> Paired:
    """`chosen` - `values`, both of shape (..., seeds) with NaN for what was not measured; `known`
    has the shape of the result, or one that broadcasts to it."""
    differences = chosen - values
    there = np.isfinite(differences)
    shared = there.sum(axis=-1).astype(float)
    filled = np.where(there, differences, 0.0)
    lead = filled.sum(axis=-1) / np.maximum(shared, 1)
    squares = (np.where(there, filled - lead[..., None], 0.0) ** 2).sum(axis=-1)
    total = np.maximum(shared - 1, 0) + known.df
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (squares + known.df * 2 * known.variance) / total
    variance = np.where(total > 0, variance, 0.0)
    return Paired(lead, variance, shared, np.minimum(total, known.most))
