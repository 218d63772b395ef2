"""`compare`: pairing, what is left out, few and bad values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from crucible_tinkex import bench
from crucible_tinkex.bench.comparison import standard_error
from crucible_tinkex.errors import ConfigError

RNG = np.random.default_rng(3)


def test_a_real_difference_is_seen_and_named() -> None:
    base = RNG.normal(2, 1, size=80)
    found = bench.compare(base - 0.2 + RNG.normal(0, 0.1, 80), base, names=("new", "old"))
    assert found.verdict.startswith("new is better: new - old = -0.")
    assert found.low < -0.2 < found.high < 0 and found.p < 1e-6
    assert found.effect_size < -1 and found.detectable < 0.05
    higher = bench.compare(base, base - 0.2 + RNG.normal(0, 0.1, 80), direction="max")
    assert higher.verdict.startswith("a is better")
    assert "not about their settings" in found.notes[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_unequal_sets_are_compared_on_what_they_share() -> None:
    a = bench.Scores([1.0, 2, 3, 4, math.nan], ["v", "w", "x", "y", "z"])
    b = bench.Scores([2.0, 3, 5, 5, 5, 6], ["w", "x", "y", "z", "p", "q"])
    found = bench.compare(a, b)
    assert (found.pairs, found.left_out, found.not_measured) == (3, (1, 2), 1)
    assert found.difference == pytest.approx(-1 / 3)
    assert "left out: 1 of the first, 2 of the second" in found.notes[0]


def test_repeated_samples_of_a_prompt_are_one_score() -> None:
    a = bench.Scores([0.0, 1, 1, 1], ["x", "x", "y", "y"])
    b = bench.Scores([0.0, 0, 1, 0], ["x", "x", "y", "y"])
    assert bench.compare(a, b, direction="max").pairs == 2


def test_few_clusters_are_judged_by_flipped_signs_and_bootstrapped() -> None:
    found = bench.compare([1.1, 2.3, 3.2, 4.4, 5.1, 6.3], [1.0, 2, 3, 4, 5, 6])
    assert found.method == "all sign flips" and found.p == 2 / 64
    assert found.bootstrap is not None and 0 < found.bootstrap[0] < found.difference
    assert any("only 6 independent" in note for note in found.notes)


def test_five_rows_earn_no_star_however_clear_they_look() -> None:
    found = bench.compare([1.1, 2.2, 3.1, 4.2, 5.1], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.p == 2 / 32, "all five lie one way: fewer signs there are not"
    assert found.verdict.startswith("no difference seen between a and b")
    assert any("only 5 independent examples" in note for note in found.notes)


def test_seeds_widen_the_claim_and_the_interval() -> None:
    examples = list(range(40)) * 3
    seeds = [s for s in range(3) for _ in range(40)]
    shift = np.array([-0.3, 0.1, 0.4])[seeds]
    a = RNG.normal(size=120) * 0.1 + shift
    several = bench.compare(
        bench.Scores(a, examples, seeds=seeds), bench.Scores(np.zeros(120), examples, seeds=seeds)
    )
    one = bench.compare(a, np.zeros(120))
    assert several.seeds == 3 and several.standard_error > 3 * one.standard_error
    assert several.df < 5 and not any("one seed" in note for note in several.notes)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([], [], "a and b have no measured example yet"),
        ([1.0], [2.0], "n = 1: nothing can be said"),
        ([1.0, 2.0], [math.nan, math.nan], "share no measured example"),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "no spread to judge by"),
        ([1.0, 1.0], [1.0, 1.0], "no spread to judge by"),
    ],
)
def test_what_cannot_be_judged_is_said(a: list[float], b: list[float], said: str) -> None:
    found = bench.compare(a, b)
    assert said in found.verdict and math.isnan(found.p)
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_a_seed_in_common_the_verdict_says_so() -> None:
    a, b, none = (
        bench.Scores([1.0, 2.0], ["x", "y"], seeds=seeds) for seeds in ([0, 1], [2, 2], [3, 3])
    )
    found = bench.compare(a, b, names=("lr 1", "lr 2"))
    assert "lr 1 and lr 2 have no seed in common (0, 1 and 2); train both" in found.verdict
    assert "search.seeds" in found.verdict
    empty = bench.Scores([], [], seeds=[])
    assert bench.compare(none, empty).verdict.endswith("b has no measured example yet")


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="3 values against 2"):
        bench.compare([1.0, 2, 3], [1.0, 2])
    with pytest.raises(ConfigError, match="2 values and 1 clusters"):
        bench.Scores([1.0, 2.0], ["x", "y"], ["c"])
    with pytest.raises(ConfigError, match="alpha"):
        bench.compare([1.0, 2.0], [1.0, 2.5], alpha=5)


def crossed(
    clusters: int, seeds: int, *, size: int = 1
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.repeat(np.arange(clusters), seeds * size), np.tile(np.arange(seeds), clusters * size)


def test_several_seeds_have_the_variance_of_both_parts_and_of_their_noise_once() -> None:
    """Against the mean squares of a crossed table (Searle, Casella, McCulloch 1992)."""
    rng = np.random.default_rng(3)
    cluster, seed = crossed(30, 4)
    table = rng.normal(size=(30, 1)) + 0.5 * rng.normal(size=4) + rng.normal(size=(30, 4))
    error, df = standard_error(table.ravel(), cluster, seed)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    left = table - rows[:, None] - columns + table.mean()
    noise = (left**2).sum() / (29 * 3)
    expected = (rows.var(ddof=1) * 4 + columns.var(ddof=1) * 30 - noise) / table.size
    assert error == pytest.approx(np.sqrt(expected)) and 3 < df < 29


def test_what_seeds_do_alone_is_judged_by_students_quantile_of_the_seeds() -> None:
    cluster, seed = crossed(20, 3)
    error, df = standard_error(np.array([0.0, 1.0, 2.0])[seed], cluster, seed)
    assert error == pytest.approx(1 / np.sqrt(3)) and df == pytest.approx(2)


def test_seeds_that_have_clusters_of_their_own_are_judged_by_the_seeds() -> None:
    scores = np.random.default_rng(4).normal(size=12)
    error, df = standard_error(scores, np.arange(12), np.repeat([0, 1, 2], 4))
    means = scores.reshape(3, 4).mean(axis=1)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(3)) and df == pytest.approx(2)


@pytest.mark.parametrize(("seeds", "by_seed"), [(2, 0.0), (2, 0.3), (3, 0.3), (5, 0.0), (10, 0.1)])
def test_intervals_over_seeds_cover_as_they_say(seeds: int, by_seed: float) -> None:
    """94 to 96.8 % in more sweeps; here .014 is two standard errors."""
    cluster, seed = crossed(40, seeds, size=2)
    rng = np.random.default_rng(seeds)
    covered = 0
    for _ in range(1000):
        scores = rng.normal(size=40)[cluster] + rng.normal(size=len(cluster))
        scores = scores + by_seed * rng.normal(size=seeds)[seed]
        error, df = standard_error(scores, cluster, seed)
        covered += abs(float(scores.mean())) <= special.stdtrit(df, 0.975) * error
    assert 0.935 - 0.014 <= covered / 1000 <= 0.965 + 0.014


def test_seeds_of_which_one_is_far_noisier_never_cover_less() -> None:
    rng = np.random.default_rng(6)
    cluster, seed = crossed(20, 2)
    covered = 0
    for _ in range(600):
        scores = rng.normal(size=2)[seed] * np.array([0.1, 2.0])[seed] + rng.normal(size=40)
        error, df = standard_error(scores, cluster, seed)
        covered += abs(float(scores.mean())) <= special.stdtrit(df, 0.975) * error
    assert covered / 600 >= 0.93
