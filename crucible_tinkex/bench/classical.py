"""Tests for a single look, as papers report them: omnibus F, Dunnett against a control, Holm.

Each holds if one looks once, at a number of seeds fixed before. The verdict does not rest on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from crucible_tinkex.bench.intervals import Floats


@dataclass(frozen=True)
class Test:
    """`p` is nan where nothing can be tested."""

    name: str
    statistic: float
    p: float
    df: tuple[float, float]


def omnibus(values: Floats) -> Test:
    """Whether any configuration differs: the F test of repeated measures over the seeds that all
    have (Fisher 1925; Maxwell and Delaney, chapter 11), from (configurations, seeds)."""
    complete = values[:, np.isfinite(values).all(axis=0)]
    k, n = complete.shape
    name = "repeated measures F"
    if k < 2 or n < 2:
        return Test(name, float("nan"), float("nan"), (k - 1, max(0, (k - 1) * (n - 1))))
    centre = complete.mean()
    rows = complete.mean(axis=1, keepdims=True)
    residuals = complete - rows - complete.mean(axis=0, keepdims=True) + centre
    df = (k - 1, (k - 1) * (n - 1))
    between = n * float(((rows - centre) ** 2).sum()) / df[0]
    within = float((residuals**2).sum()) / df[1]
    if within <= 1e-18 * max(1.0, abs(float(centre))) ** 2:
        return Test(name, float("nan"), float("nan"), df)
    f = between / within
    return Test(name, f, float(special.fdtrc(*df, f)), df)


def holm(p: Floats) -> Floats:
    """P-values adjusted for their number, step by step (Holm 1979, Scand. J. Stat. 6)."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * factors))
    found = np.empty(len(p))
    found[order] = adjusted
    return found


def two_sided(t: Floats, df: Floats) -> Floats:
    """Student's p-value."""
    return np.asarray(2 * special.stdtr(df, -np.abs(t)))


def dunnett(t: Floats, df: float, counts: Floats, control_count: float) -> Floats:
    """Two-sided p-values of all against one control, from t statistics with a common variance of
    `df` degrees of freedom (Dunnett 1955, doi 10.1080/01621459.1955.10501294).

    The control's mean makes the statistics correlated: given it and the common standard deviation
    they are independent, so the probability that the largest |t| stays below is an integral over
    two numbers. Unlike `scipy.stats.dunnett` it also takes the smaller `df` of paired values.
    """
    correlation, times = np.unique(1 / (1 + control_count / counts), return_counts=True)
    a, b = np.sqrt(correlation)[:, None, None], np.sqrt(1 - correlation)[:, None, None]
    z, z_weight = np.polynomial.hermite_e.hermegauss(80)
    u, u_weight = np.polynomial.legendre.leggauss(80)
    spread = np.sqrt(2 * special.gammaincinv(df / 2, (u + 1) / 2) / df)
    weights = np.outer(u_weight / 2, z_weight / np.sqrt(2 * np.pi))
    found = []
    for edge in np.abs(t):
        high = (edge * spread[None, :, None] - a * z) / b
        low = (-edge * spread[None, :, None] - a * z) / b
        inside = (special.ndtr(high) - special.ndtr(low)) ** times[:, None, None]
        found.append(1 - float((inside.prod(axis=0) * weights).sum()))
    return np.asarray(np.clip(found, 0.0, 1.0))


def half_width(sd: float, n: int, *, alpha: float = 0.05) -> float:
    """Of Student's interval of level 1 - `alpha` for the mean of `n` values, two at least."""
    return float(special.stdtrit(n - 1, 1 - alpha / 2)) * sd / float(np.sqrt(n))
