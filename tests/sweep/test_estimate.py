"""What `plan` says a sweep will use."""

from __future__ import annotations

from typing import Any

import pytest

from crucible_tinkex.cli.estimates import estimate_lines
from crucible_tinkex.config import Experiment
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.estimate import Estimate, Range, Rows, estimate
from crucible_tinkex.sweep.experience import Pace

STEPS, TRIALS = 90, 9


def estimated(
    search: dict[str, Any] | None = None,
    *,
    paces: tuple[Pace, ...] = (),
    base_url: str = "embedded",
    generate: bool = False,
    **budget: Any,
) -> Estimate:
    experiment = Experiment.build(
        {
            "name": "e",
            "service": {"base_url": base_url},
            "model": {"base": "nano"},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            "train": {"max_steps": STEPS, "batch_size": 4},
            "evaluation": {"generate": generate},
            "search": search or {},
            "budget": budget,
        }
    )
    planner = Planner(experiment, rows=100, fingerprint="f")
    plans = [planner.plan({}, 0)]
    rows = Rows(tokens=10, evaluated=500)
    return estimate(experiment, plans, trials=TRIALS, rows=rows, paces=paces)


def stopping(**rule: Any) -> dict[str, Any]:
    return {"stopping": rule}


@pytest.mark.parametrize(
    ("search", "steps"),
    [
        ({}, Range(9 * 90, 9 * 90)),
        (stopping(rule="topk", keep=2, first_rung=10), Range(9 * 10 + 2 * 80, 250)),
        (
            stopping(rule="topk", keep=[3, 1], rungs=[10, 30]),
            Range(9 * 10 + 3 * 20 + 60, 9 * 10 + 3 * 20 + 60),
        ),
        (stopping(rule="halving", eta=3, first_rung=10), Range(9 * 10 + 3 * 20 + 60, 810)),
        (stopping(rule="plateau", every=30), Range(9 * 30 + 60, 810)),
        (stopping(rule="divergence", every=30), Range(9 * 30, 810)),
        ({"confirm": 2, "confirm_top": 3}, Range(810 + 540, 810 + 540)),
    ],
)
def test_steps_count_what_is_stopped_and_confirmed(search: dict[str, Any], steps: Range) -> None:
    assert estimated(search).steps == steps


def test_a_climb_is_between_few_and_all_its_trials() -> None:
    rule = {"rule": ["topk", "behind"], "first_rung": 10, "keep": 2, "every": 30}
    climb = {"strategy": "auto", "trials": 9, "space": {"lora.rank": [2, 4]}, "stopping": rule}
    found = estimated(climb)
    assert found.steps == Range(3 * 10 + 80, 9 * 10 + 4 * 80)


def test_tokens_are_those_of_training_and_of_evaluations() -> None:
    plain = 810 * 4 * 10
    assert estimated().tokens == Range(plain + 10 * 500, plain + 10 * 500)
    assert estimated(generate=True).tokens == Range(plain + 5000, plain + 10_000)


def test_caps_count() -> None:
    assert estimated(steps=100).steps == Range(100, 100)
    assert estimated(tokens=5000).tokens == Range(5000, 5000)
    assert estimated(trials=3).steps == Range(270, 270)
    pace = (Pace(1.0, None),)
    assert estimated(paces=pace, hours=1).seconds == Range(3600, 3600)


def test_time_and_room_come_from_finished_sweeps_only() -> None:
    unknown = estimated()
    assert unknown.seconds is None and unknown.checkpoint_bytes is None
    known = estimated(paces=(Pace(100.0, 1000.0), Pace(200.0, None)))
    assert known.seconds == Range(round(37_400 / 200, 1), 37_400 / 100)
    assert known.checkpoint_bytes == Range(9 * 8 * 1000, 9 * 8 * 1000 * 3)


def test_a_price_is_known_or_said_to_be_unknown() -> None:
    assert estimated().dollars == Range(0, 0)
    hosted = estimated(base_url="https://example.org")
    assert hosted.dollars is None
    assert any("unknown price" in line for line in estimate_lines(hosted.summary()))
    assert any("no finished sweep" in line for line in estimate_lines(hosted.summary()))


def test_lines_have_units() -> None:
    known = estimated(stopping(rule="median"), paces=(Pace(1.0, 1e6),))
    text = "\n".join(estimate_lines(known.summary()))
    assert "810 steps" in text and " h, from 1 finished sweep of this base" in text
    assert "MB" in text and "$0.00" in text
