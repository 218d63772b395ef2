"""Intervals of means over rows: against a textbook, in coverage, with clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crucible_tinkex.bench.means import bootstrap, mean_of


def test_a_plain_mean_has_students_interval() -> None:
    found = mean_of([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    # t(3) = 3.1824, sd = 1.2910
    assert found.high - found.value == pytest.approx(3.18245 * 1.290994 / 2, rel=1e-5)


def test_a_share_of_one_is_not_sure() -> None:
    found = mean_of([1.0] * 40, share=True)
    assert found.value == 1.0 and found.high == 1.0
    assert 0.89 < found.low < 0.92
    assert mean_of([1.0] * 400, share=True).low > 0.98


def test_rows_of_one_group_count_less() -> None:
    values = [float(i % 5 < 3) for i in range(50) for _ in range(8)]
    alone = mean_of(values, share=True)
    grouped = mean_of(values, clusters=[i // 8 for i in range(400)], share=True)
    assert alone.value == grouped.value and grouped.clusters == 50
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(8), rel=0.05)


def test_nats_per_token_are_a_ratio_of_sums() -> None:
    found = mean_of([1.0, 3.0, 2.0], weights=[1, 3, 2])
    assert found.value == pytest.approx(14 / 6)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_it_holds_as_often_as_it_says(p: float) -> None:
    rng = np.random.default_rng(1)
    tries = [mean_of((rng.random(60) < p).astype(float), share=True) for _ in range(600)]
    covered = np.mean([t.low <= p <= t.high for t in tries])
    assert 0.92 <= covered <= 0.995


def test_what_cannot_be_known_is_infinite() -> None:
    for found in (mean_of([0.3]), mean_of([2.0, 2.0, 2.0]), mean_of([1, 1], clusters=["a", "a"])):
        assert (found.low, found.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="no values"):
        mean_of([])


def test_bootstrap_of_a_ratio() -> None:
    rng = np.random.default_rng(3)
    counts = np.stack([rng.integers(0, 3, 80), np.full(80, 2)], axis=1).astype(float)
    value = float(counts[:, 0].sum() / counts[:, 1].sum())
    found = bootstrap(value, counts, lambda c: np.asarray(c[:, 0] / c[:, 1]), n=80)
    plain = mean_of(counts[:, 0] / 2)
    assert found.low == pytest.approx(plain.low, abs=0.02)
    assert found.high == pytest.approx(plain.high, abs=0.02)
    same = bootstrap(1.0, np.ones((9, 2)), lambda c: np.asarray(c[:, 0] / c[:, 1]), n=9)
    assert same.low == -math.inf
