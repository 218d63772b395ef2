"""How much can be seen with how many: power, smallest visible difference, seeds still needed."""

from __future__ import annotations

import numpy as np
from scipy import special

from crucible_tinkex.bench.intervals import boundary, log_ratio

POWER = 0.8
"""With which a difference should be seen."""
MOST_SEEDS = 1000
"""Beyond this a question counts as not to be settled by seeds."""


def paired_power(effect: float, n: int, *, alpha: float = 0.05) -> float:
    """Of the two-sided paired t-test of `n` pairs, for a difference of `effect` standard deviations
    of the differences. Exact, by the noncentral t distribution (Cohen 1988, chapter 2)."""
    if n < 2:
        return 0.0
    df, shift = n - 1, effect * np.sqrt(n)
    critical = special.stdtrit(df, 1 - alpha / 2)
    inside = special.nctdtr(df, shift, critical) - special.nctdtr(df, shift, -critical)
    return float(1 - inside)


def detectable(standard_error: float, df: float, *, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided test sees with probability `POWER`, in the unit
    of `standard_error` (Bloom 1995, doi 10.1177/0193841X9501900504; Miller 2024, arXiv 2411.00640,
    section 5)."""
    quantiles = special.stdtrit(df, 1 - alpha / 2) + special.stdtrit(df, POWER)
    return float(quantiles * standard_error)


def seeds_to_settle(
    lead: float,
    sd: float,
    *,
    shared: int,
    df: float,
    level: float,
    zone: float,
    nats: float = np.inf,
) -> int | None:
    """How many seeds a pair needs in all until the confidence sequence of `level`, or a ratio of
    `nats` (`log_ratio`), says with probability `POWER` that the rival is not better by more than
    `zone`; None if more than `MOST_SEEDS`. Takes the lead and spread seen so far for true, so it is
    a forecast."""
    if not sd > 0 or not np.isfinite(sd):
        return None
    n = np.arange(max(shared, 1), MOST_SEEDS + 1)
    more = df + n - shared
    half = boundary(n, more, level) * sd / np.sqrt(n)
    least = lead - special.ndtri(POWER) * sd / np.sqrt(n)
    told = (least + zone >= half) | (log_ratio(least, sd**2, n, more, zone) >= nats)
    enough = np.flatnonzero(told)
    return int(n[enough[0]]) if len(enough) else None
