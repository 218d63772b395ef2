"""Warnings: what may be a mistake is said, and a sound experiment is left in peace."""

from __future__ import annotations

from typing import Any

import pytest

from crucible_tinkex.config import Experiment

BASE: dict[str, Any] = {"name": "e", "model": {"base": "nano"}, "data": {"train": "train.jsonl"}}
RANKS = {"lora.rank": [1, 2, 4]}


def warnings(rows: int | None = None, tokens: int | None = None, **sections: Any) -> list[str]:
    return Experiment.build({**BASE, **sections}).warnings(rows=rows, tokens=tokens)


def test_a_sound_experiment_is_left_in_peace() -> None:
    space = {**RANKS, "train.batch_size": [8, 16]}
    assert warnings(480, 9_000, search={"space": space}, train={"max_steps": 16}) == []
    assert warnings(notify={"command": "sh -c 'cat > told.json'"}) == []
    draws = {"strategy": "random", "trials": 3, "space": RANKS}
    assert warnings(480, search=draws, service={"base_url": "https://h"}) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lora": {"alpha": 16.0}}, "lora.alpha is not applied"),
        ({"notify": {"command": "cat > told.json"}}, "notify.command: '>' is for a shell"),
        ({"service": {"allow_http": True}}, "key may cross the network in clear text"),
        (
            {"search": {"metric": "eval/accuracy", "direction": "min"}},
            "calls the worst eval/accuracy the best; leave it out for 'max'",
        ),
        ({"search": {"trials": 5}}, "search.trials has no effect on strategy 'grid'"),
        ({"search": {"configs": [{"lora.rank": 1}]}}, "search.configs has no effect"),
        (
            {"search": {"strategy": "list", "configs": [{}], "space": RANKS}},
            "search.space has no effect",
        ),
        (
            {"search": {"strategy": "list", "configs": [{}], "where": ["lora.rank > 1"]}},
            "search.where has no effect on strategy 'list'",
        ),
        (
            {"lora": {"rank": 16}, "search": {"space": RANKS}},
            "lora.rank = 16 has no effect: search.space gives each trial its own",
        ),
        (
            {
                "train": {"weight_config": {"claim_weight": 3.0}, "token_weights": "claims"},
                "search": {"space": {"train.weight_config.claim_weight": [1.0, 5.0]}},
            },
            "train.weight_config.claim_weight = 3.0 has no effect",
        ),
        ({"optimizer": {"warmup_steps": 19}}, "never leaves the warm-up"),
    ],
)
def test_what_may_be_a_mistake_is_said(sections: dict[str, Any], words: str) -> None:
    (found,) = warnings(150, **sections)
    assert words in found


def test_a_setting_that_some_trials_have_is_left_in_peace() -> None:
    declared = {"lora": {"rank": 16}, "optimizer": {"warmup_steps": 2}}
    space = {
        **RANKS,
        "optimizer.warmup_steps": [4, 8],
        "optimizer.schedule": ["constant", "linear"],
    }
    when = {"optimizer.warmup_steps": "optimizer.schedule != 'constant'"}
    random = {"strategy": "random", "trials": 3, "enqueue": [{"optimizer.schedule": "linear"}]}
    assert warnings(480, search={"space": space, "when": when, **random}, **declared) == []
    listed = {"strategy": "list", "configs": [{"lora.rank": 4}, {}]}
    assert warnings(480, search=listed, **declared) == []
    # As a stored experiment has it: with every default written out.
    written = Experiment.build({**BASE, "search": {"space": RANKS}}).model_dump(mode="json")
    assert Experiment.build(written).warnings() == []


@pytest.mark.parametrize("key", ["model.base", "data.train_on", "nowhere.rank"])
def test_what_cannot_vary_is_for_others_to_refuse(key: str) -> None:
    assert warnings(480, search={"space": {key: ["a", "b"]}}) == []


def test_a_batch_larger_than_the_data_is_said_with_its_tokens() -> None:
    found = warnings(150, 8_874, train={"batch_size": 4096})
    assert "4096 is more than the 150 training rows: one step of about 242,319 tokens" in found[0]
    assert "27.3 times" in found[0]
    assert "a single step" in found[1]


@pytest.mark.parametrize(
    "search",
    [
        {"space": {"train.batch_size": [8, 200]}},
        {"space": {"train.batch_size": {"low": 8, "high": 200, "count": 2}}},
        {"strategy": "list", "configs": [{"train.batch_size": 8}, {"train.batch_size": 200}]},
    ],
)
def test_every_batch_size_of_the_search_is_looked_at(search: dict[str, Any]) -> None:
    assert "train.batch_size = 200 is more than the 150" in warnings(150, search=search)[0]
