"""The interval of a mean over held-out rows.

Rows of one document or prompt group are not independent, so standard errors are robust to clusters
(Liang and Zeger 1986, doi 10.1093/biomet/73.1.13; for evaluations Miller 2024, arXiv 2411.00640).
A share has Wilson's interval (1927, doi 10.1080/01621459.1927.10502953), which is right near 0 and
1 also for few rows, with as many rows as would make the same standard error were they independent
(Korn and Graubard 1998, Survey Methodology 24:193). A weighted mean, such as nats per token, is a
ratio of sums, linearised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from crucible_tinkex.bench.intervals import Floats

DRAWS = 2000
_SEED = 0
"""The same numbers give the same interval."""


@dataclass(frozen=True)
class Measured:
    """A value over `n` rows, with its interval; one that cannot be known is (-inf, inf)."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    n: int = 0
    clusters: int = 0
    """Independent groups of rows."""


def mean_of(
    values: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    share: bool = False,
    alpha: float = 0.05,
) -> Measured:
    """Interval of level 1 - `alpha` for the mean. `share`: every value is between 0 and 1.
    `ValueError` without values."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("there are no values")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    groups = numbered(range(len(x)) if clusters is None else clusters)
    count = int(groups.max()) + 1
    mean = float((w * x).sum() / w.sum())
    if count < 2:
        return Measured(mean, n=len(x), clusters=count)
    sums = np.bincount(groups, w * (x - mean))
    error = math.sqrt(float((sums**2).sum()) * count / (count - 1)) / float(w.sum())
    # What is left of a spread of nothing by rounding is none.
    error = error if error > 1e-12 * max(1.0, abs(mean)) else 0.0
    quantile = _quantile(count - 1, alpha)
    if share:
        low, high = _wilson(mean, mean * (1 - mean) / error**2 if error else count, quantile)
    elif error:
        low, high = mean - quantile * error, mean + quantile * error
    else:
        low, high = -math.inf, math.inf
    return Measured(mean, low, high, len(x), count)


def reduction(before: Sequence[float], after: Sequence[float], *, alpha: float = 0.05) -> Measured:
    """The share by which the mean of `after` is below that of `before`, all of them above 0:
    1 - mean(after) / mean(before). Its interval is that of the logarithm of the ratio (the delta
    method), with Welch's degrees of freedom (1947, doi 10.1093/biomet/34.1-2.28); unknown where
    either is a single value. `ValueError` for values that are not above 0, or none."""
    parts = [np.asarray(values, dtype=float) for values in (before, after)]
    if not all(len(x) and (x > 0).all() for x in parts):
        raise ValueError("a share is of values above 0")
    first, last = (float(x.mean()) for x in parts)
    value, n = 1 - last / first, sum(len(x) for x in parts)
    if min(len(x) for x in parts) < 2:
        return Measured(value, n=n, clusters=n)
    errors = [float(x.var(ddof=1)) / len(x) / float(x.mean()) ** 2 for x in parts]
    total = sum(errors)
    if not total:
        return Measured(value, value, value, n, n)
    df = total**2 / sum(e**2 / (len(x) - 1) for e, x in zip(errors, parts, strict=True))
    half = _quantile(df, alpha) * math.sqrt(total)
    bounds = [-math.expm1(math.log(last / first) + sign * half) for sign in (1, -1)]
    return Measured(value, bounds[0], bounds[1], n, n)


def bootstrap(
    value: float,
    counts: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    n: int,
    alpha: float = 0.05,
) -> Measured:
    """Percentile interval of a statistic of summed `counts`, an array of (clusters, ...);
    `statistic` takes (draws, ...). Unknown where no draw differs from another."""
    clusters = len(counts)
    drawn = np.random.default_rng(_SEED).multinomial(
        clusters, np.full(clusters, 1 / clusters), DRAWS
    )
    found = statistic(np.tensordot(drawn.astype(float), counts, 1))
    found = found[np.isfinite(found)]
    if not len(found) or np.ptp(found) == 0:
        return Measured(value, n=n, clusters=clusters)
    low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
    return Measured(value, float(low), float(high), n, clusters)


def numbered(labels: Sequence[Hashable]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The labels as numbers from 0, in order of their first occurrence."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(x, len(numbers)) for x in labels], dtype=np.intp)


def _quantile(df: float, alpha: float) -> float:
    from scipy import special

    return float(special.stdtrit(df, 1 - alpha / 2))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
