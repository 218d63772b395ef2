"""Means over the newest steps, exact over a resume at any step."""

from __future__ import annotations

import json

import pytest

from crucible_tinkex.metrics import TRAIN_WINDOW_STEPS as WINDOW
from crucible_tinkex.training.attempt.measurements import Measurements, public


def fed(steps: int) -> Measurements:
    found = Measurements()
    for k in range(1, steps + 1):
        found.stepped({"train/nll": 1 / k, "train/other": k / 7}, weight=3.0 + k % 4)
    return found


def test_the_mean_is_weighted_and_forgets() -> None:
    found = Measurements()
    found.stepped({"train/nll": 1.0}, weight=1.0)
    assert found.means() == {"train/nll": 1.0}
    found.stepped({"train/nll": 4.0}, weight=2.0)
    assert found.means() == {"train/nll": 3.0}
    for _ in range(WINDOW):
        found.stepped({"train/nll": 7.0}, weight=1.0)
    assert found.means() == {"train/nll": 7.0}


@pytest.mark.parametrize("stopped_at", range(26))
def test_a_restored_window_goes_on_exactly(stopped_at: int) -> None:
    whole, first = fed(25), fed(stopped_at)
    first.evaluated(stopped_at, {"eval/nll": 2.5})
    second = Measurements()
    second.restore(json.loads(json.dumps(first.carried())))  # as the journal keeps it
    assert second.metrics == first.metrics
    assert second.evaluated_step == stopped_at
    for k in range(stopped_at + 1, 26):
        second.stepped({"train/nll": 1 / k, "train/other": k / 7}, weight=3.0 + k % 4)
    assert second.means() == whole.means()


def test_what_is_carried_is_bounded_and_kept_apart() -> None:
    found = fed(1000)
    found.evaluated(1000, {"eval/nll": 2.5})
    carried = found.carried()
    assert public(carried) == found.metrics
    assert set(found.metrics) == {"eval/nll", "train/nll", "train/other"}
    assert len(carried) == len(fed(WINDOW).carried()) + len(found.metrics)


def test_a_checkpoint_of_version_0_1_has_metrics_only() -> None:
    found = Measurements()
    found.restore({"eval/nll": 2.5, "train/nll": 3.0})
    assert found.metrics == {"eval/nll": 2.5, "train/nll": 3.0}
    assert (found.evaluated_step, found.means()) == (-1, {})
