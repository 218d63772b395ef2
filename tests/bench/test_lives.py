"""Over the whole life of a sweep nothing is claimed of equals; `python -m benchmarks honesty` lives
ten times as many."""

from __future__ import annotations

import pytest

from benchmarks.lives import LIVES, WHOLE, lived
from benchmarks.rates import Rate

SWEEPS = 1000
PARTS = 4
OTHERS = 60


@pytest.mark.parametrize("part", range(PARTS))
def test_pruned_confirmed_and_grown_no_winner_is_declared_ever(part: int) -> None:
    each = SWEEPS // PARTS
    found = lived(WHOLE, each, first=part * each)
    assert found.winners.share <= 0.05 and found.winners.upper < 0.06, found
    assert abs(found.bias) <= 0.1, "two standard errors"
    assert found.covered.lower <= 0.95 <= found.covered.upper, found


def test_judged_again_and_again_alpha_is_spent_once() -> None:
    ended = [lived(life, OTHERS) for life in LIVES if life != WHOLE]
    winners = Rate(sum(one.winners.count for one in ended), OTHERS * len(ended))
    assert winners.share <= 0.05 and winners.upper < 0.06, ended
