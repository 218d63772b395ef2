"""Tests between groups of values, for a single look, as papers report them.

Each finding has `about`, one sentence for people. Tests of two groups are made of all pairs, their
p-values adjusted for the number of pairs (Holm 1979). What is not finite is left out: of paired
tests, the whole pair. What cannot be tested (too few values, no spread, pairs that do not match) is
said in `about`, and its figures are nan. Nothing here holds when one looks again and again, and the
verdict on a sweep does not rest on it: that is `conclude`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special

from crucible_tinkex.bench.classical import holm
from crucible_tinkex.bench.intervals import Floats
from crucible_tinkex.bench.resampling import bootstrapped

ALPHA = 0.05

Groups = Mapping[str, Floats]
Finding = Mapping[str, Any]


@dataclass(frozen=True)
class _Found:
    """`effect`: of the kind that the test's name in `_EFFECTS` says."""

    statistic: float
    p: float
    effect: float
    low: float = math.nan
    high: float = math.nan
    """Interval of the difference of the means, where the test has one."""


class _Untestable(Exception):
    """Why, in words."""


def between(groups: Mapping[str, Sequence[float]], test: str) -> Finding:
    """`test`: a key of `GROUP_TESTS`. Of two groups at a time: `pairs`, else the figures."""
    values = {name: np.asarray(column, dtype=float) for name, column in groups.items()}
    known = GROUP_TESTS[test]
    if isinstance(known, _OfPairs):
        return _pairs(values, test, known)
    try:
        found = known(_counted(values, test))
    except _Untestable as e:
        return {**_figures(_NOTHING, test), "n": _sizes(values), "about": str(e)}
    figures = _figures(found, test)
    return {**figures, "n": _sizes(values), "about": _about(found, found.p, test)}


_NOTHING = _Found(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class _OfPairs:
    test: Callable[[Floats, Floats], _Found]
    paired: bool = False


def _pairs(groups: Groups, test: str, known: _OfPairs) -> Finding:
    rows = [_pair(groups, a, b, test, known) for a, b in combinations(groups, 2)]
    tested = [row for row in rows if not math.isnan(row["p"])]
    for row, p in zip(tested, holm(np.array([r["p"] for r in tested])), strict=True):
        row["p_holm"] = float(p)
    seen = [f"{r['a']} - {r['b']}" for r in tested if r["p_holm"] < ALPHA]
    if not rows:
        about = "fewer than two groups: there is nothing to compare"
    elif len(rows) == 1:
        about = rows[0]["about"]
    elif seen:
        about = f"{len(seen)} of {len(rows)} pairs differ: {', '.join(seen[:5])}"
    else:
        about = f"no difference seen in {len(tested)} of {len(rows)} pairs that could be tested"
    return {"pairs": rows, "about": about}


def _pair(groups: Groups, a: str, b: str, test: str, known: _OfPairs) -> dict[str, Any]:
    head = {"a": a, "b": b}
    try:
        x, y = _matched(groups[a], groups[b]) if known.paired else _both(groups[a], groups[b])
        if len(x) < 2 or len(y) < 2:
            raise _Untestable(f"n = {len(x)} and {len(y)}: two values of each are needed")
        found = known.test(x, y)
    except _Untestable as e:
        return {**head, **_figures(_NOTHING, test), "p_holm": math.nan, "about": str(e)}
    difference = float(x.mean() - y.mean())
    counts = {"n": [len(x), len(y)], "difference": difference}
    about = f"{a} - {b} = {difference:.3g}: {_about(found, found.p, test)}"
    return {**head, **_figures(found, test), **counts, "p_holm": found.p, "about": about}


def _figures(found: _Found, test: str) -> dict[str, Any]:
    numbers = {"statistic": found.statistic, "p": found.p, "low": found.low, "high": found.high}
    return {**numbers, "effect": found.effect, "effect_name": _EFFECTS[test]}


def _about(found: _Found, p: float, test: str) -> str:
    effect = f"{_EFFECTS[test]} {found.effect:.2g}"
    if math.isnan(p):
        return f"{100 - 100 * ALPHA:g} % interval {found.low:.3g} to {found.high:.3g}, {effect}"
    seen = "differ" if p < ALPHA else "no difference seen"
    return f"{seen} (p = {p:.2g}, {effect})"


def _sizes(groups: Groups) -> list[int]:
    return [int(np.isfinite(values).sum()) for values in groups.values()]


def _both(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return x[np.isfinite(x)], y[np.isfinite(y)]


def _matched(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) != len(y):
        raise _Untestable(
            f"{len(x)} values against {len(y)}: they are not paired; `compare` pairs by example"
        )
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _counted(groups: Groups, test: str) -> list[Floats]:
    """At least two groups of two finite values; for a test of matched groups, the complete rows."""
    if len(groups) < 2:
        raise _Untestable("fewer than two groups: there is nothing to compare")
    columns = list(groups.values())
    if test in _MATCHED:
        if len({len(c) for c in columns}) > 1:
            raise _Untestable("groups of different sizes: they are not matched")
        complete = np.isfinite(np.stack(columns)).all(axis=0)
        columns = [c[complete] for c in columns]
    columns = [c[np.isfinite(c)] for c in columns]
    if min(map(len, columns)) < 2:
        raise _Untestable(f"n = {min(map(len, columns))}: two values of each group are needed")
    return columns


def _spread(*columns: Floats) -> None:
    """Rounding is no spread."""
    floor = 1e-12 * max(1.0, *(float(np.abs(c).max()) for c in columns))
    if all(np.ptp(c) <= floor for c in columns):
        raise _Untestable("no spread within the groups: there is nothing to judge by")


def _pooled_sd(x: Floats, y: Floats) -> float:
    squares = (len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)
    return math.sqrt(float(squares) / (len(x) + len(y) - 2))


def _student(x: Floats, y: Floats, *, equal: bool = True) -> _Found:
    """Student (1908), Welch (1947); Cohen's d by the pooled standard deviation."""
    from scipy import stats

    _spread(x, y)
    found = stats.ttest_ind(x, y, equal_var=equal)
    return _of_t(found, float(x.mean() - y.mean()) / _pooled_sd(x, y))


def _of_t(found: Any, effect: float) -> _Found:
    interval = found.confidence_interval(1 - ALPHA)
    low, high = float(interval.low), float(interval.high)
    return _Found(float(found.statistic), float(found.pvalue), effect, low, high)


def _welch(x: Floats, y: Floats) -> _Found:
    return _student(x, y, equal=False)


def _paired(x: Floats, y: Floats) -> _Found:
    """Student's of the differences; Cohen's d_z."""
    from scipy import stats

    d = x - y
    _spread(d)
    found = stats.ttest_rel(x, y)
    return _of_t(found, float(d.mean() / d.std(ddof=1)))


def _mann_whitney(x: Floats, y: Floats) -> _Found:
    """Mann and Whitney (1947), exact for few values without ties; Cliff's delta (1993): how much
    more often the first is larger."""
    from scipy import stats

    if np.ptp(np.concatenate([x, y])) == 0:
        raise _Untestable("all values are the same")
    found = stats.mannwhitneyu(x, y)
    return _Found(
        float(found.statistic),
        float(found.pvalue),
        2 * float(found.statistic) / (len(x) * len(y)) - 1,
    )


def _wilcoxon(x: Floats, y: Floats) -> _Found:
    """Wilcoxon's signed ranks (1945), exact for few; equal pairs are left out. The rank-biserial
    correlation of matched pairs (Kerby 2014)."""
    from scipy import stats

    d = x - y
    d = d[d != 0]
    if not len(d):
        raise _Untestable("the pairs are all the same")
    found = stats.wilcoxon(d)
    ranks = stats.rankdata(np.abs(d))
    effect = float((ranks * np.sign(d)).sum() / ranks.sum())
    return _Found(float(found.statistic), float(found.pvalue), effect)


def _f_variance(x: Floats, y: Floats) -> _Found:
    """Whether variances differ, by their ratio (Fisher 1925); holds for normal values only."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise _Untestable("a group has no spread")
    ratio = float(x.var(ddof=1) / y.var(ddof=1))
    df = (len(x) - 1, len(y) - 1)
    tails = special.fdtr(*df, ratio), special.fdtrc(*df, ratio)
    return _Found(ratio, float(min(1.0, 2 * min(tails))), ratio)


def _bootstrap(x: Floats, y: Floats) -> _Found:
    """BCa interval of the difference of the means (Efron 1987), no p-value."""
    _spread(x, y)
    low, high = bootstrapped(
        (x, y),
        lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis),
        alpha=ALPHA,
        method="BCa" if min(len(x), len(y)) > 2 else "percentile",
    )
    difference = float(x.mean() - y.mean())
    return _Found(difference, math.nan, difference / _pooled_sd(x, y), low, high)


def _anova(columns: Sequence[Floats]) -> _Found:
    """One-way analysis of variance (Fisher 1925); eta squared."""
    from scipy import stats

    _spread(*columns)
    found = stats.f_oneway(*columns)
    everything = np.concatenate(columns)
    total = float(((everything - everything.mean()) ** 2).sum())
    within = sum(float(((c - c.mean()) ** 2).sum()) for c in columns)
    return _Found(float(found.statistic), float(found.pvalue), 1 - within / total)


def _kruskal_wallis(columns: Sequence[Floats]) -> _Found:
    """Kruskal and Wallis (1952); epsilon squared (Tomczak and Tomczak 2014)."""
    from scipy import stats

    everything = np.concatenate(columns)
    if np.ptp(everything) == 0:
        raise _Untestable("all values are the same")
    found = stats.kruskal(*columns)
    effect = float(found.statistic) / (len(everything) - 1)
    return _Found(float(found.statistic), float(found.pvalue), effect)


def _friedman(columns: Sequence[Floats]) -> _Found:
    """Friedman (1937), matched groups by ranks; Kendall's W."""
    from scipy import stats

    if len(columns) < 3:
        raise _Untestable("two groups: use wilcoxon; friedman is for three and more")
    if not np.ptp(np.stack(columns), axis=0).any():
        raise _Untestable("all values are the same")
    found = stats.friedmanchisquare(*columns)
    effect = float(found.statistic) / (len(columns[0]) * (len(columns) - 1))
    return _Found(float(found.statistic), float(found.pvalue), effect)


def _levene(columns: Sequence[Floats]) -> _Found:
    """Whether variances differ, robustly: Levene's about the medians (Brown and Forsythe 1974)."""
    from scipy import stats

    _spread(*(np.abs(c - np.median(c)) for c in columns))
    found = stats.levene(*columns, center="median")
    variances = [float(c.var(ddof=1)) for c in columns]
    ratio = max(variances) / min(variances) if min(variances) > 0 else math.inf
    return _Found(float(found.statistic), float(found.pvalue), ratio)


GROUP_TESTS: Mapping[str, _OfPairs | Callable[[Sequence[Floats]], _Found]] = {
    "ttest": _OfPairs(_student),
    "welch": _OfPairs(_welch),
    "paired_ttest": _OfPairs(_paired, paired=True),
    "mann_whitney": _OfPairs(_mann_whitney),
    "wilcoxon": _OfPairs(_wilcoxon, paired=True),
    "f_variance": _OfPairs(_f_variance),
    "bootstrap": _OfPairs(_bootstrap),
    "anova": _anova,
    "kruskal_wallis": _kruskal_wallis,
    "friedman": _friedman,
    "levene": _levene,
}
_MATCHED = ("friedman",)
_EFFECTS = {
    "ttest": "Cohen's d",
    "welch": "Cohen's d",
    "paired_ttest": "Cohen's d_z",
    "mann_whitney": "Cliff's delta",
    "wilcoxon": "rank-biserial r",
    "f_variance": "ratio of variances",
    "bootstrap": "Cohen's d",
    "anova": "eta squared",
    "kruskal_wallis": "epsilon squared",
    "friedman": "Kendall's W",
    "levene": "ratio of variances",
}
