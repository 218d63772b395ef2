"""Few values: signs flipped, and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from crucible_tinkex.bench.intervals import Floats

EXACT_UP_TO = 14
"""So many values have all 2^n signs tried; more have `RESAMPLES` drawn."""
RESAMPLES = 9_999
_SEED = 0
"""The same numbers give the same answer."""


def sign_flip(sums: Floats) -> tuple[float, str]:
    """Two-sided p that the `sums` are symmetric about zero, and how it was found (Fisher 1935,
    section 21). Drawn signs count the observed ones among them (Phipson and Smyth 2010,
    doi 10.2202/1544-6115.1585), so p is never 0."""
    n = len(sums)
    observed = abs(float(sums.sum())) * (1 - 1e-12)
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ sums) >= observed).mean()), "all sign flips"
    signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), size=(RESAMPLES, n))
    extreme = int((np.abs(signs @ sums) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1), f"{RESAMPLES} sign flips"


def bca(sums: Floats, sizes: Floats, *, alpha: float) -> tuple[float, float] | None:
    """Interval of `sums / sizes` over clusters (Efron 1987, doi 10.1080/01621459.1987.10478410);
    None where it is not defined."""
    if len(sums) < 3 or np.ptp(sums / sizes) == 0:
        return None

    def ratio(total: Floats, size: Floats, axis: int = -1) -> Floats:
        return np.asarray(total.sum(axis=axis) / size.sum(axis=axis))

    found = bootstrapped((sums, sizes), ratio, alpha=alpha, paired=True)
    return found if all(map(math.isfinite, found)) else None


def bootstrapped(
    samples: Sequence[Floats],
    statistic: Callable[..., Floats],
    *,
    alpha: float,
    paired: bool = False,
    method: Literal["BCa", "percentile"] = "BCa",
) -> tuple[float, float]:
    """Interval of level 1 - `alpha` of a statistic of the samples, which takes an `axis`; not
    finite where it is not defined."""
    from scipy import stats

    found = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        confidence_level=1 - alpha,
        n_resamples=RESAMPLES,
        method=method,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)
