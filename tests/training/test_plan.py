"""What a trial's identity depends on, and what it does not."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from trial_bench import make_plan

from crucible_tinkex.config import Experiment
from crucible_tinkex.training.plan import trial_identity

BASE = {"name": "s", "model": {"base": "nano"}, "data": {"train": "x", "eval": "y"}}


def identity(
    changes: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    fingerprint: str = "f",
    reference: bool = False,
) -> str:
    experiment = Experiment.build(BASE).with_values(changes or {})
    return trial_identity(experiment, seed, fingerprint, reference=reference)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.base": "other"},
        {"lora.rank": 4},
        {"lora.train_mlp": False},
        {"optimizer.learning_rate": 2e-3},
        {"train.batch_size": 4},
        {"train.max_length": 64},
        {"evaluation.max_rows": 5},
    ],
)
def test_what_decides_the_numbers_is_a_part(changes: dict[str, Any]) -> None:
    assert identity(changes) != identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "t"},
        {"train.epochs": 7.0},
        {"train.max_steps": 5},
        {"train.eval_every": 5},
        {"train.checkpoint_every": 1},
        {"train.submit_ahead": 4},
        {"search.metric": "train/nll"},
        {"run.max_attempts": 2},
    ],
)
def test_what_may_be_amended_is_none(changes: dict[str, Any]) -> None:
    assert identity(changes) == identity()
    assert len(identity()) == 12


def test_seed_data_and_reference_are_parts() -> None:
    found = {identity(), identity(seed=1), identity(fingerprint="g"), identity(reference=True)}
    assert len(found) == 4


def test_a_decaying_schedule_makes_the_end_a_part() -> None:
    cosine = {"optimizer.schedule": "cosine"}
    assert identity(cosine | {"train.max_steps": 5}) != identity(cosine)


def test_a_reference_depends_on_nothing_that_trains() -> None:
    changes = {"lora.rank": 4, "optimizer.learning_rate": 1e-2, "train.batch_size": 3}
    assert identity(changes, seed=3, reference=True) == identity(reference=True)
    assert identity({"evaluation.max_rows": 5}, reference=True) != identity(reference=True)


def test_a_plan_crosses_processes() -> None:
    plan = make_plan()
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301  (our own bytes)
