"""What is claimed holds in simulated sweeps; `python -m benchmarks honesty` does ten times more."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.honesty import (
    ALPHA,
    EQUAL,
    SPREAD_OUT,
    chosen_values,
    confirmed,
    coverage,
    drawn,
    false_winners,
    fixed_repeats,
    grown_false_winners,
    power,
)
from crucible_tinkex import bench
from crucible_tinkex.bench.selection.contest import contest

SWEEPS = 1000


@pytest.mark.parametrize(
    ("k", "seeds", "spread"), [(2, 5, 1), (2, 20, 1), (3, 10, 3), (12, 3, 1), (12, 5, 5)]
)
def test_equal_configurations_have_no_winner_however_often_one_looks(
    k: int, seeds: int, spread: float
) -> None:
    rate = false_winners(np.random.default_rng(k), SWEEPS, k=k, seeds=seeds, spread=spread)
    assert rate.share <= 0.05 and rate.upper < 0.06, rate


@pytest.mark.parametrize(("sizes", "climb"), [((2, 1, 1, 1), 0), ((3, 3, 6), 0), ((2, 2, 2, 2), 9)])
def test_a_sweep_that_grows_has_no_winner_among_equals(sizes: tuple[int, ...], climb: int) -> None:
    rng = np.random.default_rng(len(sizes))
    rate = grown_false_winners(rng, SWEEPS // 2, sizes=sizes, seeds=5, climb=climb)
    assert rate.share <= 0.05 and rate.upper < 0.06, rate


def test_two_equal_ones_far_ahead_of_the_rest_have_no_winner_either() -> None:
    """Where multiplicity helps least."""
    values = drawn(np.random.default_rng(1), SWEEPS, [9.0, 9.0, 0.0], 12)
    declared = np.zeros(SWEEPS, dtype=bool)
    for n in range(2, 13):
        declared |= contest(values[..., :n], zone=0, alpha=ALPHA).duels.beaten.sum(axis=-1) == 2
    assert declared.mean() <= 0.05


def test_the_naive_winner_would_be_declared() -> None:
    """The simulation can fail: with a t-test at every look it does."""
    values = drawn(np.random.default_rng(2), SWEEPS, [0.0, 0.0], 20)
    d = values[:, 0] - values[:, 1]
    seen = np.zeros(SWEEPS, dtype=bool)
    for n in range(2, 21):
        t = d[:, :n].mean(axis=1) / d[:, :n].std(axis=1, ddof=1) * np.sqrt(n)
        seen |= np.abs(t) > 2.1
    assert seen.mean() > 0.2


@pytest.mark.parametrize("means", [[0.0] * 12, [0.0, 0.0, -0.5, -2.0]])
def test_the_winners_value_is_not_flattered(means: list[float]) -> None:
    bias, naive, covered = chosen_values(np.random.default_rng(4), 4 * SWEEPS, means, 5)
    assert abs(bias) <= 0.05 < 0.1 < naive
    assert covered.share >= 0.935


def test_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    ours, naive = coverage(rng, SWEEPS, clusters=50, size=4)
    assert abs(ours.share - 0.95) <= 0.02 and naive.share < 0.85
    independent, _ = coverage(rng, SWEEPS, clusters=100, size=1)
    assert abs(independent.share - 0.95) <= 0.02
    for seeds in (2, 3, 5):
        several, naive = coverage(rng, SWEEPS, clusters=50, size=4, seeds=seeds, by_seed=0.3)
        assert several.share >= 0.935 and naive.share < 0.6


def test_power_is_as_promised() -> None:
    for n, effect in ((40, 0.4), (90, 0.25)):
        seen, theory = power(np.random.default_rng(n), 2 * SWEEPS, n=n, effect=effect)
        assert seen.share == pytest.approx(theory, abs=0.03)


def test_confirmation_finds_the_best_with_half_the_runs_of_repeating_all() -> None:
    rng = np.random.default_rng(6)
    found = confirmed(rng, SWEEPS, SPREAD_OUT, bench.terms(zone=1.0))
    assert found.right.share >= 0.95 and found.right.rest.upper < 0.06, found
    assert found.runs <= fixed_repeats(rng, len(SPREAD_OUT), 1.0) / 2
    assert abs(found.bias) <= 0.05 and abs(found.covered.share - 0.95) <= 0.015, found


def test_confirmation_of_equals_declares_no_winner() -> None:
    found = confirmed(np.random.default_rng(7), SWEEPS, EQUAL, bench.terms(zone=1.0))
    assert found.winners.share <= 0.05 and found.winners.upper < 0.06, found
    assert abs(found.bias) <= 0.05 and abs(found.covered.share - 0.95) <= 0.015, found


def test_conclude_says_what_the_simulations_count() -> None:
    values = drawn(np.random.default_rng(8), 60, [0.0, 0.0, -3.0], 6)
    counted = contest(values, zone=0.0, alpha=ALPHA).duels.beaten.sum(axis=-1)
    for rows, beaten in zip(values, counted, strict=True):
        sweep = [bench.Configuration(str(i), dict(enumerate(row))) for i, row in enumerate(rows)]
        found = bench.conclude(sweep, bench.terms(direction="max"))
        assert sum(rival.separable for rival in found.rivals) == beaten
