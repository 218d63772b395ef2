"""What a trial's identity depends on beyond its settings (those: the tests of `config`)."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from trial_bench import make_plan

from crucible_tinkex.config import Experiment
from crucible_tinkex.training.plan import trial_identity

BASE = {"model": {"base": "nano"}, "data": {"train": "x", "eval": "y"}}


def identity(
    changes: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    fingerprint: str = "f",
    total_steps: int = 10,
    reference: bool = False,
) -> str:
    declared: dict[str, Any] = {key: dict(value) for key, value in BASE.items()}
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        declared.setdefault(section, {})[name] = value
    experiment = Experiment.build({"name": "s", **declared})
    return trial_identity(
        experiment, seed, fingerprint, total_steps=total_steps, reference=reference
    )


@pytest.mark.parametrize(
    "other",
    [
        identity(seed=1),
        identity(fingerprint="g"),
        identity(reference=True),
        identity({"service.dtype": "bf16"}),
        identity({"lora.rank": 4}),
    ],
)
def test_what_decides_the_numbers_is_a_part(other: str) -> None:
    assert other != identity()


@pytest.mark.parametrize(
    "other",
    [
        identity(total_steps=20),
        identity({"train.max_steps": 5, "train.eval_every": 5, "train.checkpoint_every": 1}),
        identity({"search.metric": "train/nll", "run.max_attempts": 2}),
    ],
)
def test_what_may_be_amended_is_none(other: str) -> None:
    assert other == identity()
    assert len(other) == 12


def test_a_decaying_schedule_makes_the_end_a_part() -> None:
    cosine = {"optimizer.schedule": "cosine"}
    assert identity(cosine, total_steps=20) != identity(cosine)


def test_a_reference_depends_on_nothing_that_trains() -> None:
    changes = {"lora.rank": 4, "optimizer.learning_rate": 1e-2, "train.batch_size": 3}
    assert identity(changes, seed=3, reference=True) == identity(reference=True)
    assert identity({"evaluation.max_rows": 5}, reference=True) != identity(reference=True)


def test_a_plan_crosses_processes() -> None:
    plan = make_plan()
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301  (our own bytes)
