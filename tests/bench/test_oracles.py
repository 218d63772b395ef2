"""Our formulas against SciPy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from crucible_tinkex import bench
from crucible_tinkex.bench.classical import dunnett, holm, omnibus, two_sided
from crucible_tinkex.bench.intervals import EFFECT_VARIANCE, boundary, e_value
from crucible_tinkex.bench.power import detectable, paired_power
from crucible_tinkex.bench.resampling import sign_flip

RNG = np.random.default_rng(11)


def test_cluster_robust_standard_errors_are_those_of_statsmodels() -> None:
    clusters = np.repeat(np.arange(12), RNG.integers(1, 9, size=12))
    a = RNG.normal(size=len(clusters)) + RNG.normal(size=12)[clusters]
    b = RNG.normal(size=len(clusters))
    found = bench.compare(
        bench.Scores(a, range(len(a)), clusters), bench.Scores(b, range(len(b)), clusters)
    )
    fit = sm.OLS(a - b, np.ones(len(a))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    assert found.standard_error == pytest.approx(fit.bse[0])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))
    assert found.df == fit.df_resid_inference == 11


def test_independent_examples_are_a_paired_t_test() -> None:
    a, b = RNG.normal(0.2, 1, size=(2, 60))
    found, known = bench.compare(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))


def test_flipped_signs_are_scipys_permutation_test() -> None:
    values = RNG.normal(0.5, 1, size=9)
    known = stats.permutation_test(
        (values, np.zeros(9)), lambda x, y: np.sum(x - y), permutation_type="samples"
    )
    assert sign_flip(values) == (pytest.approx(known.pvalue), "all sign flips")
    many = RNG.normal(0.4, 1, size=25)
    known = stats.permutation_test(
        (many, np.zeros(25)), lambda x, y: np.sum(x - y), permutation_type="samples", rng=RNG
    )  # of 9,999 draws, as ours
    assert sign_flip(many)[0] == pytest.approx(known.pvalue, abs=0.03)


def test_holm_is_that_of_statsmodels() -> None:
    p = RNG.uniform(0, 0.1, size=9)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_omnibus_is_the_anova_of_repeated_measures() -> None:
    values = RNG.normal(size=(4, 6)) + np.arange(4)[:, None] / 2
    rows = [
        {"seed": s, "configuration": c, "value": values[c, s]} for c in range(4) for s in range(6)
    ]
    known = AnovaRM(pd.DataFrame(rows), "value", "seed", ["configuration"]).fit().anova_table
    found = omnibus(values)
    assert found.statistic == pytest.approx(known["F Value"].iloc[0])
    assert found.p == pytest.approx(known["Pr > F"].iloc[0])
    two = omnibus(values[:2])
    assert two.p == pytest.approx(stats.ttest_rel(values[0], values[1]).pvalue)


@pytest.mark.parametrize("sizes", [(5, 5, 5), (4, 6, 9, 5)])
def test_dunnett_is_scipys(sizes: tuple[int, ...]) -> None:
    groups = [RNG.normal(i / 3, 1, size=n) for i, n in enumerate(sizes)]
    control = RNG.normal(size=6)
    known = stats.dunnett(*groups, control=control, rng=np.random.default_rng(0))
    df = 6 + sum(sizes) - len(sizes) - 1
    found = dunnett(known.statistic, df, np.array(sizes, dtype=float), 6)
    assert found == pytest.approx(known.pvalue, abs=2e-3)
    one = dunnett(np.array([2.1]), 8, np.array([5.0]), 5.0)
    assert one == pytest.approx(two_sided(np.array([2.1]), np.array([8.0])), abs=1e-5)


def test_power_is_that_of_statsmodels() -> None:
    for n, effect in ((5, 1.0), (12, 0.7), (40, 0.3)):
        known = TTestPower().power(effect, n, 0.05, alternative="two-sided")
        assert paired_power(effect, n) == pytest.approx(known, abs=1e-6)
    se, df = 0.1, 39
    effect = detectable(se, df) / (se * math.sqrt(40))
    assert paired_power(effect, 40) == pytest.approx(0.8, abs=0.01)


def test_the_boundary_is_where_the_evidence_suffices() -> None:
    n, df = np.array([6.0, 8, 30]), np.array([5.0, 20, 200])
    t = boundary(n, df, 0.01)
    assert e_value(t, n, df) == pytest.approx(100)
    assert boundary(2, 1, 0.05) == math.inf, "two values prove nothing"


def test_the_evidence_is_the_likelihood_ratio_that_it_is_said_to_be() -> None:
    """Integrated over the prior on effect / sd: the noncentral t density against the central."""
    n, df, t = 7, 6, 2.4
    effects = np.linspace(-15, 15, 20_001)
    prior = stats.norm.pdf(effects, scale=math.sqrt(EFFECT_VARIANCE))
    ratio = np.trapezoid(stats.nct.pdf(t, df, effects * math.sqrt(n)) * prior, effects)
    assert e_value(t, n, df) == pytest.approx(ratio / stats.t.pdf(t, df), rel=1e-3)


def test_trend_and_normality_are_those_of_mann_kendall_and_shapiro() -> None:
    values = np.sort(RNG.normal(size=30)) + RNG.normal(size=30)
    found = bench.analyze(list(values)).metrics["value"]
    pairs = [np.sign(values[j] - values[i]) for i in range(30) for j in range(i + 1, 30)]
    s, variance = sum(pairs), 30 * 29 * 65 / 18
    z = (s - np.sign(s)) / math.sqrt(variance)
    assert found["trend"]["p"] == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    assert found["trend"]["slope"] == pytest.approx(
        np.median([(values[j] - values[i]) / (j - i) for i in range(30) for j in range(i + 1, 30)])
    )
    assert found["normality"]["p"] == pytest.approx(stats.shapiro(values).pvalue)
