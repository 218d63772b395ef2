"""What is measured is the trial's identity; what is asked is the sweep's and may change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.config import Experiment

unhurried = settings(max_examples=80, derandomize=True)

BASE: dict[str, Any] = {
    "name": "e",
    "service": {"base_url": "embedded"},
    "model": {"base": "nano"},
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "search": {"space": {"lora.rank": [4, 16]}},
}


def experiment(*changes: tuple[str, Any]) -> Experiment:
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes:
        section, _, name = key.partition(".")
        if name:
            raw.setdefault(section, {})[name] = value
        else:
            raw[section] = value
    return Experiment.build(raw)


ASKED: dict[str, list[Any]] = {
    "train.epochs": [0.5, 2],
    "train.max_steps": [1, 1000],
    "train.eval_every": [5],
    "train.checkpoint_every": [0, 7],
    "train.submit_ahead": [0, 8],
    "search.metric": ["train/nll"],
    "search.direction": ["max"],
    "search.at": ["best"],
    "search.seeds": [(0, 1), (7,)],
    "search.strategy": ["random"],
    "search.trials": [9],
    "search.where": [("lora.rank > 1",)],
    "search.enqueue": [({"lora.rank": 3},)],
    "search.space": [{"lora.rank": [4, 16, 32]}],
    "search.reference": [False],
    "search.stopping": [{"rule": "halving"}],
    "run.max_concurrent": [1, 64],
    "run.executor": ["local"],
    "run.sessions_per_actor": ["auto"],
    "service.threads": [3],
    "service.transport": ["sdk"],
    "service.allow_http": [True],
}
PLACES: dict[str, list[Any]] = {
    "name": ["other"],
    "run.storage": ["elsewhere"],
    "data.train": ["moved.jsonl"],
    "data.eval": ["moved.jsonl"],
    "data.corpus": ["corpus.jsonl"],
    "data.sets": [{"clean": "moved.jsonl"}],
    "model.tokenizer": ["org/name"],
}
RECIPE: dict[str, list[Any]] = {
    "lora.rank": [1, 64],
    "lora.train_mlp": [False],
    "lora.train_unembed": [True],
    "lora.seed": [3],
    "optimizer.learning_rate": [1e-3],
    "optimizer.beta1": [0.5],
    "optimizer.eps": [1e-8],
    "optimizer.weight_decay": [0.1],
    "optimizer.grad_clip_norm": [1.0],
    "optimizer.warmup_steps": [2],
    "optimizer.schedule": ["linear", "cosine"],
    "train.batch_size": [1],
}
QUESTION: dict[str, list[Any]] = {
    "model.base": ["other"],
    "train.max_length": [64],
    "evaluation.generate": [False],
    "evaluation.max_rows": [3],
}
NOT_MY_SETTINGS: dict[str, list[Any]] = {
    "service.base_url": ["https://tinker.example"],
    "service.dtype": ["fp32"],
    "data.format": ["text"],
    "data.train_on": ["last_assistant", "everything"],
    "data.too_long": ["refuse", "truncate", "drop"],
    "data.eval_seed": [1],
}


def changes(*pools: dict[str, list[Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    pool = [(key, value) for p in pools for key, values in p.items() for value in values]
    return st.sampled_from(pool)


@unhurried
@given(st.lists(changes(ASKED, PLACES), min_size=1, max_size=6, unique_by=lambda c: c[0]))
def test_what_is_asked_leaves_a_trial_as_it_is(asked: list[tuple[str, Any]]) -> None:
    trial, other = experiment(), experiment(*asked)
    assert other.trial_settings(total_steps=99) == trial.trial_settings(total_steps=10)


@unhurried
@given(changes(RECIPE, QUESTION), st.lists(changes(ASKED), max_size=3, unique_by=lambda c: c[0]))
def test_what_is_measured_makes_another_trial(
    measured: tuple[str, Any], asked: list[tuple[str, Any]]
) -> None:
    trial, other = experiment(*asked), experiment(measured, *asked)
    assert other.trial_settings(total_steps=10) != trial.trial_settings(total_steps=10)


def test_the_length_decides_only_a_rate_that_decays() -> None:
    for schedule in ("linear", "cosine"):
        decaying = experiment(("optimizer.schedule", schedule))
        assert decaying.trial_settings(total_steps=9) != decaying.trial_settings(total_steps=10)


def test_the_untrained_base_is_decided_by_the_evaluation_alone() -> None:
    def untrained(*changed: tuple[str, Any]) -> dict[str, Any]:
        return experiment(*changed).trial_settings(total_steps=0, reference=True)

    assert untrained(("lora.rank", 1), ("optimizer.schedule", "linear")) == untrained()
    assert untrained(("evaluation.max_rows", 1)) != untrained()
    assert untrained() != experiment().trial_settings(total_steps=0)


def test_what_the_service_does_not_apply_is_no_part_of_a_trial() -> None:
    settings = experiment(("lora.alpha", 16.0)).trial_settings(total_steps=1)
    assert settings == experiment().trial_settings(total_steps=1)


def test_an_alias_of_the_base_is_the_same_trial() -> None:
    old, new = (experiment(("model.base", f"smollm2-135m{s}")) for s in ("", "-instruct"))
    assert old.trial_settings(total_steps=1) == new.trial_settings(total_steps=1)
    assert new.contradictions(old) == new.amendments(old) == []


@unhurried
@given(st.lists(changes(ASKED, RECIPE), min_size=1, max_size=6, unique_by=lambda c: c[0]))
def test_what_is_asked_may_be_amended(asked: list[tuple[str, Any]]) -> None:
    old, new = experiment(), experiment(*asked)
    assert new.contradictions(old) == []
    found = new.amendments(old)
    for key, _ in asked:
        assert any(f == key or f.startswith(f"{key}.") for f in found), key


@pytest.mark.parametrize("key", [*QUESTION, *NOT_MY_SETTINGS])
def test_another_question_is_a_contradiction(key: str) -> None:
    for value in {**QUESTION, **NOT_MY_SETTINGS}[key]:
        assert experiment((key, value)).contradictions(experiment()) == [key]
        assert experiment((key, value)).amendments(experiment()) == []


@pytest.mark.parametrize("key", PLACES)
def test_a_place_is_neither(key: str) -> None:
    new = experiment((key, PLACES[key][0]))
    assert new.contradictions(experiment()) == new.amendments(experiment()) == []


def test_held_out_rows_cannot_come_or_go() -> None:
    without = experiment(("data", {"train": "train.jsonl"}))
    assert without.contradictions(experiment()) == ["data.eval"]
    assert experiment().contradictions(without) == ["data.eval"]


def test_saying_the_metrics_own_direction_changes_nothing() -> None:
    said = experiment(("search.direction", "min"))
    assert said.amendments(experiment()) == experiment().amendments(said) == []


def test_a_removed_axis_is_named() -> None:
    new = experiment(("search.space", {"optimizer.beta1": [0.5]}))
    assert new.amendments(experiment()) == [
        "search.space.lora.rank",
        "search.space.optimizer.beta1",
    ]
