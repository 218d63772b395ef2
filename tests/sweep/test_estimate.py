"""What `plan` says a sweep will use."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_tinkex.cli.terminal.estimates import estimate_lines
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import Spent
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.preparing.estimate import Estimate, Range, Rows, estimate
from crucible_tinkex.sweep.preparing.experience import Pace
from crucible_tinkex.training.attest.probing import Attestation
from crucible_tinkex.training.data import SweepData

STEPS, TRIALS = 90, 9
TABLE = """
date = 2026-11-27
source = "a test"
[models.nano]
train = 1.0
prefill = 10.0
sample = 100.0
"""


def tokenised(rows: int, length: int, *, has_prompts: bool = True) -> TokenisedDataset:
    """Rows of so many tokens, 4 of them the prompt's."""
    return TokenisedDataset(
        tokens=np.ones(rows * length, np.int32),
        mask=np.ones(rows * length, np.uint8),
        offsets=np.arange(rows + 1, dtype=np.int64) * length,
        prompt_lengths=np.full(rows, 4 * has_prompts, np.int32),
        eos_id=0,
        truncated=0,
        has_prompts=has_prompts,
        fingerprint="f",
    )


HELD_OUT = tokenised(50, 11)  # 500 tokens are read, 200 of prompts, 350 may be written


def estimated(
    search: dict[str, Any] | None = None,
    *,
    paces: tuple[Pace, ...] = (),
    probe: Attestation | None = None,
    base_url: str = "embedded",
    checkpoints: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    held_out: TokenisedDataset | None = HELD_OUT,
    **budget: Any,
) -> Estimate:
    experiment = Experiment.build(
        {
            "name": "e",
            "service": {"base_url": base_url},
            "model": {"base": "nano"},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            "train": {"max_steps": STEPS, "batch_size": 4},
            "evaluation": {"generate": False, **(evaluation or {})},
            "search": search or {},
            "budget": budget,
            "checkpoints": checkpoints or {},
        }
    )
    planner = Planner(experiment, rows=100, fingerprint="f")
    plans = [planner.plan({}, 0)]
    rows = Rows.of(SweepData(tokenised(30, 11), held_out, "f", None), experiment.evaluation, plans)
    return estimate(experiment, plans, trials=TRIALS, rows=rows, paces=paces, probe=probe)


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


def test_seeds_that_were_stopped_may_be_trained_to_the_end() -> None:
    search = {**stopping(rule="topk", keep=2, first_rung=10), "seeds": [0, 1, 2]}
    assert estimated(search).steps == Range(250, 250 + 2 * 90)


def test_a_climb_is_between_few_and_all_its_trials() -> None:
    rule = {"rule": ["topk", "behind"], "first_rung": 10, "keep": 2, "every": 30}
    climb = {"strategy": "auto", "trials": 9, "space": {"lora.rank": [2, 4]}, "stopping": rule}
    found = estimated(climb)
    assert found.steps == Range(3 * 10 + 80, 9 * 10 + 4 * 80)


PLAIN = 810 * 4 * 10
EVALUATIONS = 10
ANSWERS = {"metrics": ["exact_match", "pass@k"], "samples": 3, "max_tokens": 20}


@pytest.mark.parametrize(
    ("evaluation", "read", "written"),
    [
        ({}, Range(500, 500), Range(0, 0)),
        ({"generate": True}, Range(500, 500 + 200), Range(0, 350)),
        ({"max_rows": 10}, Range(100, 100), Range(0, 0)),
        (ANSWERS, Range(700, 700), Range(0, 50 * 3 * 20)),
        ({**ANSWERS, "max_rows": 10}, Range(140, 140), Range(0, 10 * 3 * 20)),
        ({**ANSWERS, "generate": True}, Range(700, 900), Range(0, 350 + 50 * 3 * 20)),
    ],
)
def test_tokens_are_those_that_are_trained_read_and_written(
    evaluation: dict[str, Any], read: Range, written: Range
) -> None:
    found = estimated(evaluation=evaluation)
    each = read.plus(written)
    assert found.tokens == each.times(EVALUATIONS).plus(Range(PLAIN, PLAIN))
    assert found.sample_tokens == written.times(EVALUATIONS)
    said = any("of which sampled" in line for line in estimate_lines(found.summary()))
    assert said == bool(written.high)


def test_without_prompts_or_held_out_rows_nothing_is_written() -> None:
    plain = estimated(evaluation={"generate": True}, held_out=tokenised(5, 11, has_prompts=False))
    assert plain.tokens == Range(PLAIN + EVALUATIONS * 50, PLAIN + EVALUATIONS * 50)
    assert estimated(held_out=None).tokens == Range(PLAIN, PLAIN)


def test_what_is_written_has_its_own_price(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(TABLE)
    found = estimated(evaluation=ANSWERS, prices=str(table)).dollars
    assert found is not None
    low = (PLAIN + 10 * 7000) / 1e6
    assert found == pytest.approx((low, low + 100 * 30_000 / 1e6))


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


def test_a_probe_tells_the_time_roughly_where_no_sweep_does() -> None:
    probe = Attestation(models=5, spent=Spent(500, 500, seconds=8.0, steps=10))
    found = estimated(probe=probe)  # two turns of 4 s: a step took .8 to 2 s
    assert found.probed and found.seconds is not None
    assert found.seconds.low == pytest.approx(found.steps.low * 0.8 / 8)
    by_token = found.tokens.high * 8 / 1000
    assert found.seconds.high == pytest.approx(max(found.steps.high * 2, by_token))
    assert estimated(probe=probe, hours=0.01).seconds == Range(36, 36)
    known = estimated(probe=probe, paces=(Pace(100.0, None),))
    assert not known.probed and known.seconds == estimated(paces=(Pace(100.0, None),)).seconds
    assert estimated(probe=Attestation()).seconds is None, "nothing was tried"


def test_retention_is_counted_beside_what_all_would_take() -> None:
    pace = (Pace(100.0, 1000.0),)
    whole = estimated(paces=pace)
    assert whole.kept_bytes is None
    one = 8 * 1000
    found = estimated(paces=pace, checkpoints={"keep_best": 3, "keep_last": 0})
    assert found.checkpoint_bytes == whole.checkpoint_bytes
    assert found.kept_bytes == Range(one, (3 + 2) * one)
    last = estimated(paces=pace, checkpoints={"keep_last": 1})
    assert last.kept_bytes == Range(one, (9 * 2 + 2) * one)
    assert whole.checkpoint_bytes is not None
    every = estimated(paces=pace, checkpoints={"keep_every": 1, "keep_last": 0})
    assert every.kept_bytes == Range(one, whole.checkpoint_bytes.high), "never more than all"
    assert estimated(checkpoints={"keep_best": 3, "keep_last": 0}).kept_bytes is None, (
        "no ground for a size"
    )
    text = "\n".join(estimate_lines(found.summary()))
    assert "all of them" in text and "left at the end" in text


def test_storage_costs_what_the_table_says(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    rows = '[models."nano"]\ntrain = 1\nprefill = 1\nsample = 1\n'
    head = f'date = {date.today()}\nsource = "x"\n'
    pace = (Pace(100.0, 1e9 / 8),)
    table.write_text(head + "storage = 0.5\n" + rows)
    found = estimated(paces=pace, checkpoints={"keep_best": 1, "keep_last": 0}, prices=str(table))
    assert found.storage_dollars == Range(0.5, 1.5)
    assert any("a month" in line for line in estimate_lines(found.summary()))
    table.write_text(head + rows)
    assert estimated(paces=pace, prices=str(table)).storage_dollars is None
    table.write_text(head + "storage = -1\n" + rows)
    with pytest.raises(ConfigError, match="storage"):
        estimated(paces=pace, prices=str(table))


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
