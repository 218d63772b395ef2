"""`analyze`: what a series of numbers looks like: normality, trend, convergence, outliers, a plot;
and how groups of numbers differ, by the tests of papers.

Each answer has `about`, one sentence for people; what cannot be said of so few or constant numbers
is said there, and its figures are nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crucible_tinkex.bench.groups import ALPHA, GROUP_TESTS, Finding, between
from crucible_tinkex.bench.intervals import Floats
from crucible_tinkex.bench.plot import svg
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import plain

_MAD_TO_SD = 1.4826
_STEP = "step"
_LONGEST_EXACT = 5000
"""Shapiro's p is not trusted beyond."""


@dataclass(frozen=True)
class Analysis:
    """Per metric, per test, its figures and a sentence (`about`)."""

    metrics: Mapping[str, Mapping[str, Finding]]
    plots: Mapping[str, str]
    """Per metric, an SVG image, if asked for."""
    between: Mapping[str, Finding] = field(default_factory=dict)
    """Per test between groups, its figures and a sentence."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the plots."""
        groups = {"between": self.between} if self.between else {}
        found: dict[str, Any] = plain({**self.metrics, **groups})
        return found


def analyze(
    results: Sequence[float] | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[float]],
    tests: str | Sequence[str] = ("normality", "trend", "convergence", "outliers"),
    visualize: bool = False,
) -> Analysis:
    """Of one series (named "value"), of every metric in rows such as
    `{"step": 10, "train/nll": 2.1}`, or of groups of values by their names. Rows that lack a
    metric, and values that are not finite, are left out.

    Of each series: normality, trend, convergence, outliers. Between groups: ttest (Student's),
    welch, paired_ttest, mann_whitney, wilcoxon, f_variance, bootstrap, of all pairs; anova,
    kruskal_wallis, friedman, levene, of all together. Paired tests pair by position. Raises
    `ConfigError` for an unknown test, for one between groups where there are none, or where there
    is no number at all."""
    tests = [tests] if isinstance(tests, str) else tests
    unknown = [t for t in tests if t not in TESTS and t not in GROUP_TESTS]
    if unknown:
        raise ConfigError(f"no test {unknown[0]!r}; use {', '.join((*TESTS, *GROUP_TESTS))}")
    grouped = [t for t in tests if t in GROUP_TESTS]
    if grouped and not isinstance(results, Mapping):
        raise ConfigError(
            f"{grouped[0]} compares groups: give them by name, {{'a': [...], 'b': [...]}}"
        )
    series = _grouped(results) if isinstance(results, Mapping) else _series(results)
    if not series:
        raise ConfigError("there is nothing to analyze: no row has a finite number")
    found = {
        name: {test: TESTS[test](steps, values) for test in tests if test in TESTS}
        for name, (steps, values) in series.items()
    }
    compared: dict[str, Finding] = {}
    if isinstance(results, Mapping):
        compared = {test: between(results, test) for test in grouped}
    plots = {}
    if visualize:
        for name, (steps, values) in series.items():
            marked = _outliers(steps, values)["steps"]
            plots[name] = svg(name, steps, values, marked=marked)
    return Analysis(found, plots, compared)


def _grouped(groups: Mapping[str, Sequence[float]]) -> dict[str, tuple[Floats, Floats]]:
    """Each group is a series over its positions."""
    found = {}
    single = [name for name, values in groups.items() if isinstance(values, int | float | None)]
    if single:
        raise ConfigError(
            f"{single[0]!r} is one value, of which nothing can be tested; give a series, such as "
            "the rows of a training (`results.rows`)"
        )
    for name, values in groups.items():
        if series := _series([{name: value} for value in values]):
            found[name] = series[name]
    return found


def _series(results: Sequence[Any]) -> dict[str, tuple[Floats, Floats]]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for place, row in enumerate(results):
        cells = row if isinstance(row, Mapping) else {"value": row}
        step = float(cells.get(_STEP, place))
        for name, value in cells.items():
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if name != _STEP and number and math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()}


def _normality(steps: Floats, values: Floats) -> Finding:
    """Shapiro and Wilk (1965), with skewness and excess kurtosis."""
    from scipy import stats

    n = len(values)
    nothing = {"statistic": math.nan, "p": math.nan, "normal": None, "n": n}
    if n < 3:
        return {**nothing, "about": f"n = {n}: nothing can be said of the distribution"}
    if np.ptp(values) == 0:
        return {**nothing, "about": "all values are the same"}
    if n > _LONGEST_EXACT:
        values = values[np.linspace(0, n - 1, _LONGEST_EXACT).astype(int)]
    found = stats.shapiro(values)
    normal = bool(found.pvalue >= ALPHA)
    about = "compatible with a normal distribution" if normal else "not normally distributed"
    return {
        "statistic": float(found.statistic),
        "p": float(found.pvalue),
        "normal": normal,
        "skewness": float(stats.skew(values)),
        "kurtosis": float(stats.kurtosis(values)),
        "n": n,
        "about": f"{about} (Shapiro-Wilk p = {found.pvalue:.2g}, n = {n})",
    }


def _trend(steps: Floats, values: Floats) -> Finding:
    """Mann (1945) and Kendall's test by Kendall's tau over the steps, exact where there are few and
    no ties; slope of Theil and Sen (1968) with its interval."""
    from scipy import stats

    n = len(values)
    nothing = {"direction": None, "p": math.nan, "slope": math.nan, "n": n}
    if n < 3 or np.ptp(steps) == 0:
        return {**nothing, "about": f"n = {n}: nothing can be said of a trend"}
    if np.ptp(values) == 0:
        return {**nothing, "direction": "flat", "slope": 0.0, "about": "all values are the same"}
    tau = stats.kendalltau(steps, values)
    slope = stats.theilslopes(values, steps, alpha=1 - ALPHA)
    significant = tau.pvalue < ALPHA
    direction = ("rising" if tau.statistic > 0 else "falling") if significant else "flat"
    named = direction if significant else "no trend seen"
    return {
        "direction": direction,
        "tau": float(tau.statistic),
        "p": float(tau.pvalue),
        "slope": float(slope.slope),
        "slope_low": float(slope.low_slope),
        "slope_high": float(slope.high_slope),
        "n": n,
        "about": f"{named} (p = {tau.pvalue:.2g}, {slope.slope:.3g} per step)",
    }


def _convergence(steps: Floats, values: Floats) -> Finding:
    """The first step from which the running median stays near the final level: within three
    standard deviations of the noise (of differences of neighbours, von Neumann 1941). Not converged
    where the last fifth has a trend that goes beyond that."""
    n = len(values)
    if n < 10:
        return {"step": None, "about": f"n = {n}: ten values are needed to see convergence"}
    tail = slice(n - max(5, n // 5), n)
    level = float(np.median(values[tail]))
    smooth = _running_median(values, 9)
    noise = _MAD_TO_SD * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    tolerance = max(3 * noise, 0.01 * float(np.ptp(values)))
    trend = _trend(steps[tail], values[tail])
    drift = abs(trend["slope"]) * float(np.ptp(steps[tail]))
    if trend["direction"] in ("rising", "falling") and drift > tolerance:
        return {
            "step": None,
            "level": level,
            "tolerance": tolerance,
            "about": f"not converged: still {trend['direction']} at the end",
        }
    outside = np.flatnonzero(np.abs(smooth - level) > tolerance)
    first = int(outside[-1]) + 1 if len(outside) else 0
    if first >= n:
        return {"step": None, "level": level, "tolerance": tolerance, "about": "not converged"}
    step = float(steps[first])
    about = f"within {tolerance:.3g} of {level:.4g} from step {step:g} on"
    return {"step": step, "level": level, "tolerance": tolerance, "about": about}


def _outliers(steps: Floats, values: Floats) -> Finding:
    """Hampel's (1974) rule about the running median: further off than 3.5 robust standard
    deviations (Iglewicz and Hoaglin 1993)."""
    n = len(values)
    if n < 5:
        return {"steps": [], "count": 0, "about": f"n = {n}: five values are needed"}
    residuals = values - _running_median(values, 7)
    scale = _MAD_TO_SD * float(np.median(np.abs(residuals)))
    floor = 1e-9 * float(np.max(np.abs(values)))
    marked = [float(s) for s in steps[np.abs(residuals) > max(3.5 * scale, floor)]]
    about = "no outliers" if not marked else f"{len(marked)} of {n}, the first at {marked[0]:g}"
    return {"steps": marked, "count": len(marked), "about": about}


def _running_median(values: Floats, width: int) -> Floats:
    """Of the `width` values around each; the ends repeat the first and last whole window."""
    width = min(width, len(values))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    before = width // 2
    return np.pad(medians, (before, len(values) - len(medians) - before), mode="edge")


TESTS: Mapping[str, Callable[[Floats, Floats], Finding]] = {
    "normality": _normality,
    "trend": _trend,
    "convergence": _convergence,
    "outliers": _outliers,
}
