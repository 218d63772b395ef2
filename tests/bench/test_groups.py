"""Tests between groups: each against another source than the one it calls, and on bad numbers."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.oneway import anova_oneway
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from crucible_tinkex import bench
from crucible_tinkex.bench.groups import GROUP_TESTS
from crucible_tinkex.errors import ConfigError

RNG = np.random.default_rng(17)
A, B, C = RNG.normal(0, 1, 9), RNG.normal(1, 2, 9), RNG.normal(0.5, 1, 9)
PAIRS = ("ttest", "welch", "paired_ttest", "mann_whitney", "wilcoxon", "f_variance", "bootstrap")


def pair(test: str, a: Any = A, b: Any = B) -> dict[str, Any]:
    found = bench.analyze({"a": a, "b": b}, tests=[test]).between[test]["pairs"]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.parametrize(("test", "usevar"), [("ttest", "pooled"), ("welch", "unequal")])
def test_two_means_are_those_of_statsmodels(test: str, usevar: str) -> None:
    known = CompareMeans(DescrStatsW(A), DescrStatsW(B))
    t, p, _ = known.ttest_ind(usevar=usevar)
    found = pair(test)
    assert (found["statistic"], found["p"]) == pytest.approx((t, p))
    assert (found["low"], found["high"]) == pytest.approx(known.tconfint_diff(usevar=usevar))
    assert found["effect"] == pytest.approx(
        (A.mean() - B.mean()) / known.std_meandiff_pooledvar * math.sqrt(2 / 9)
    )


def test_paired_means_are_those_of_statsmodels() -> None:
    known = DescrStatsW(A - B)
    found = pair("paired_ttest")
    assert (found["statistic"], found["p"]) == pytest.approx(known.ttest_mean()[:2])
    assert (found["low"], found["high"]) == pytest.approx(known.tconfint_mean())
    assert found["effect"] == pytest.approx((A - B).mean() / (A - B).std(ddof=1))


def test_mann_whitney_counts_all_ways_to_deal_the_values() -> None:
    x, y = [1.1, 2.3, 4.4, 6.0], [2.9, 5.1, 7.7, 8.2, 9.0]
    everything = np.array(x + y)

    def u(first: Any) -> int:
        rest = [i for i in range(9) if i not in first]
        return sum(everything[i] > everything[j] for i in first for j in rest)

    dealt = [u(first) for first in itertools.combinations(range(9), 4)]
    found = pair("mann_whitney", x, y)
    extreme = min(found["statistic"], 20 - found["statistic"])
    assert found["p"] == pytest.approx(2 * np.mean([d <= extreme for d in dealt]))
    assert found["effect"] == pytest.approx(2 * u(range(4)) / 20 - 1)


def test_wilcoxon_counts_all_signs() -> None:
    d = A - B
    ranks = stats.rankdata(np.abs(d))
    observed = abs(float((ranks * np.sign(d)).sum()))
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    found = pair("wilcoxon")
    assert found["p"] == pytest.approx((np.abs(signs @ ranks) >= observed - 1e-9).mean())
    assert abs(found["effect"]) == pytest.approx(observed / 45)


def test_a_ratio_of_variances() -> None:
    found = pair("f_variance")
    ratio = A.var(ddof=1) / B.var(ddof=1)
    # The two tails by simulation of the same F.
    drawn = RNG.chisquare(8, 400_000) / RNG.chisquare(8, 400_000)
    assert found["statistic"] == pytest.approx(ratio)
    assert found["p"] == pytest.approx(
        2 * min((drawn < ratio).mean(), (drawn > ratio).mean()), abs=0.005
    )


def test_the_bootstrap_covers_the_difference_about_as_welch_does() -> None:
    a, b = RNG.normal(0, 1, 80), RNG.normal(0.3, 1, 90)
    found, known = pair("bootstrap", a, b), pair("welch", a, b)
    assert (found["low"], found["high"]) == pytest.approx((known["low"], known["high"]), abs=0.03)
    assert math.isnan(found["p"]) and "interval" in found["about"]


def test_analysis_of_variance_is_that_of_statsmodels() -> None:
    found = bench.analyze({"a": A, "b": B, "c": C}, tests=["anova", "levene"]).between
    known = anova_oneway([A, B, C], use_var="equal")
    assert (found["anova"]["statistic"], found["anova"]["p"]) == pytest.approx(
        (known.statistic, known.pvalue)
    )
    frame = pd.DataFrame({"v": np.concatenate([A, B, C]), "g": np.repeat(["a", "b", "c"], 9)})
    table = sm.stats.anova_lm(ols("v ~ g", frame).fit())
    squares = table["sum_sq"]
    assert found["anova"]["effect"] == pytest.approx(squares["g"] / squares.sum())
    away = [np.abs(c - np.median(c)) for c in (A, B, C)]
    known = anova_oneway(away, use_var="equal")
    assert found["levene"]["p"] == pytest.approx(known.pvalue)


def test_ranks_of_several_groups_are_the_textbooks() -> None:
    found = bench.analyze({"a": A, "b": B, "c": C}, tests=["kruskal_wallis", "friedman"]).between
    ranks = stats.rankdata(np.concatenate([A, B, C])).reshape(3, 9)
    h = 12 / (27 * 28) * (ranks.sum(axis=1) ** 2 / 9).sum() - 3 * 28
    assert found["kruskal_wallis"]["statistic"] == pytest.approx(h)
    assert found["kruskal_wallis"]["p"] == pytest.approx(stats.chi2.sf(h, 2))
    within = stats.rankdata(np.stack([A, B, C]), axis=0).sum(axis=1)
    q = 12 / (9 * 3 * 4) * (within**2).sum() - 3 * 9 * 4
    assert found["friedman"]["statistic"] == pytest.approx(q)
    assert found["friedman"]["effect"] == pytest.approx(q / 18), "Kendall's W"


def test_several_pairs_are_adjusted_for_their_number() -> None:
    found = bench.analyze({"a": A, "b": B, "c": C + 5}, tests=["welch"]).between["welch"]
    p = [row["p"] for row in found["pairs"]]
    assert [row["p_holm"] for row in found["pairs"]] == pytest.approx(
        multipletests(p, method="holm")[1]
    )
    assert found["about"] == "2 of 3 pairs differ: a - c, b - c"


def test_groups_are_series_too() -> None:
    found = bench.analyze({"a": A, "b": B}, tests=["normality", "welch"], visualize=True)
    assert set(found.metrics) == set(found.plots) == {"a", "b"} and set(found.between) == {"welch"}
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert "Shapiro" in text and "Cohen" in text


@pytest.mark.parametrize("test", GROUP_TESTS)
@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"a": [1.0], "b": [2.0]}, "n = 1"),
        ({"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}, "same|spread|friedman is for"),
        ({"a": [1.0, 2.0, 3.0]}, "fewer than two groups"),
        ({"a": [1.0, math.nan, math.inf], "b": [2.0, 3.0, 4.0]}, "n = 1"),
        ({"a": [], "b": [2.0, 3.0, 4.0]}, "n = 0|not paired|not matched"),
    ],
)
def test_bad_numbers_are_said_in_words(
    test: str, groups: dict[str, list[float]], said: str
) -> None:
    import re

    found = bench.analyze(groups, tests=[test])
    finding = found.between[test]
    about = finding["about"]
    assert re.search(said, about), about
    assert all(math.isnan(row["p"]) for row in finding.get("pairs", ()))
    json.dumps(found.to_dict(), allow_nan=False)


def test_pairs_that_do_not_match_are_not_tested() -> None:
    for test in ("paired_ttest", "wilcoxon"):
        found = pair(test, [1.0, 2.0, 3.0], [1.0, 2.0])
        assert "3 values against 2: they are not paired" in found["about"]
    found = pair("paired_ttest", [1.0, math.nan, 3.0, 5.0], [0.0, 1.0, 2.5, 3.0])
    assert found["n"] == [3, 3], "a pair that lacks one is left out whole"
    found_ = bench.analyze({"a": A, "b": B, "c": C[:5]}, tests=["friedman"]).between["friedman"]
    assert "not matched" in found_["about"]


def test_groups_must_be_groups() -> None:
    with pytest.raises(ConfigError, match="welch compares groups"):
        bench.analyze([1.0, 2.0], tests=["welch"])
    with pytest.raises(ConfigError, match="mann_whitney, wilcoxon"):
        bench.analyze({"a": A, "b": B}, tests=["mannwhitney"])
    with pytest.raises(ConfigError, match="nothing to analyze"):
        bench.analyze({"a": [], "b": []}, tests=["welch"])


def test_five_values_are_enough_to_speak_and_few_to_be_sure() -> None:
    few = [0.9, 1.1, 1.0, 1.2, 0.8]
    for test in PAIRS:
        found = pair(test, few, [v + 0.05 * (-1) ** i for i, v in enumerate(few)])
        assert not found["p"] < 0.05, test
