"""Our formulas against errorbars (of evaluations) and ville (sequences that hold at every look)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import ville
from errorbars.compare import paired_compare
from errorbars.leaderboard import holm_correction
from errorbars.power import minimum_detectable_effect
from errorbars.stats import cluster_robust_se, wilson_ci
from scipy import stats

from crucible_tinkex import bench
from crucible_tinkex.bench.classical import holm
from crucible_tinkex.bench.intervals import EFFECT_VARIANCE, boundary, e_value
from crucible_tinkex.bench.means import mean_of
from crucible_tinkex.bench.power import detectable

RNG = np.random.default_rng(12)


def test_comparisons_of_evaluations_are_those_of_errorbars() -> None:
    clusters = np.repeat(np.arange(40), RNG.integers(1, 5, size=40))
    a = RNG.normal(0.2, 1, size=len(clusters)) + RNG.normal(size=40)[clusters]
    b = RNG.normal(size=len(clusters))
    found = bench.compare(
        bench.Scores(a, range(len(a)), clusters), bench.Scores(b, range(len(b)), clusters)
    )
    known = paired_compare(a, b, clusters)
    assert found.standard_error == pytest.approx(known.se_clustered)
    assert (found.low, found.high) == pytest.approx(
        (known.ci_low_clustered, known.ci_high_clustered)
    )
    assert found.p == pytest.approx(known.p_value_clustered)
    alone, known = bench.compare(a[:35], b[:35]), paired_compare(a[:35], b[:35])
    assert (alone.standard_error, alone.p) == pytest.approx((known.se_paired, known.p_value))


def test_means_of_rows_are_those_of_errorbars() -> None:
    clusters = np.repeat(np.arange(30), RNG.integers(1, 9, size=30))
    values = RNG.normal(size=len(clusters)) + RNG.normal(size=30)[clusters]
    found = mean_of(list(values), clusters=list(clusters))
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, 29)
    assert error == pytest.approx(cluster_robust_se(values, clusters))
    right = [1.0] * 1870 + [0.0] * 130
    share, known = mean_of(right, share=True), wilson_ci(1870, 2000)
    assert (share.low, share.high) == pytest.approx((known.ci_low, known.ci_high), abs=1e-4)


def test_holm_and_power_are_those_of_errorbars() -> None:
    p = RNG.uniform(0, 0.1, size=9)
    assert holm(p) == pytest.approx(holm_correction(list(p)))
    known = minimum_detectable_effect(10_000, variance=0.5)
    assert detectable(math.sqrt(2 * 0.5 / 10_000), 9_999) == pytest.approx(known, rel=1e-3)


def test_where_the_spread_is_known_the_evidence_is_the_mixture_ratio_of_ville() -> None:
    """The sequential test of a known spread (Johari et al.) and Robbins' boundary are what ours
    become with many degrees of freedom; with few ours ask for more."""
    values, n = RNG.normal(0.4, 1, size=60), np.arange(1, 61)
    t = values.cumsum() / np.sqrt(n)
    known = ville.MSPRT(sigma=1.0, tau=math.sqrt(EFFECT_VARIANCE)).fit(values)
    assert e_value(t, n, 1e7) == pytest.approx(known.e_values_, rel=1e-4)
    for alpha in (0.05, 0.001):
        robbins = ville.normal_mixture(n.astype(float), alpha, 1 / EFFECT_VARIANCE) / np.sqrt(n)
        assert boundary(n, 1e9, alpha) == pytest.approx(robbins, rel=1e-6)
        assert (boundary(n[5:], n[5:] - 1, alpha) > robbins[5:]).all()
