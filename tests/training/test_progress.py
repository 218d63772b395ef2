"""What a training's losses say: how far they fell with its interval, and when they had settled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crucible_tinkex.bench.means import reduction
from crucible_tinkex.scoring.quality import assess
from crucible_tinkex.training.progress import progress


def test_the_interval_of_a_reduction_holds_what_it_says() -> None:
    draws = np.random.default_rng(1)
    hits, runs, true = 0, 1500, 1 - 2.0 / 8.0
    for _ in range(runs):
        found = reduction(draws.normal(8, 1.2, 10).tolist(), draws.normal(2, 0.4, 10).tolist())
        hits += found.low <= true <= found.high
    assert 0.935 <= hits / runs <= 0.965


def test_a_reduction_of_single_or_constant_values() -> None:
    one = reduction([4.0], [1.0])
    assert (one.value, one.low, one.high) == (0.75, -math.inf, math.inf)
    same = reduction([4.0, 4.0], [1.0, 1.0])
    assert (same.value, same.low, same.high) == (0.75, 0.75, 0.75)
    for bad in ([], [0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="above 0"):
            reduction([1.0], bad)


def test_what_cannot_be_told_is_not_there() -> None:
    assert progress([], []) == {} == progress([1], [2.0]) == progress([1, 2], [2.0, math.nan])
    assert set(progress([1, 2, 3], [3.0, 2.0, 1.0])) == {"loss_reduction"}
    assert set(progress([*range(20)], [-1.0 + 0.1 * i for i in range(20)])) == {"convergence_steps"}


def test_a_training_that_settles_and_one_that_does_not() -> None:
    steps = [*range(1, 201)]
    settled = progress(steps, [1 + 8 * math.exp(-s / 10) + 0.01 * (-1) ** s for s in steps])
    assert 20 <= settled["convergence_steps"].value <= 90
    fell = settled["loss_reduction"]
    assert fell.low < fell.value < fell.high and fell.n == 200
    falling = progress(steps, [9 - 0.04 * s for s in steps])["convergence_steps"]
    assert (falling.value, falling.high) == (200, math.inf)

    def status(target: float) -> str:
        low, high = falling.low, falling.high
        return assess("x", target, "min", value=200.0, low=low, high=high, n=200).status

    assert (status(150), status(500)) == ("missed", "not settled")
