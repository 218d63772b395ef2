"""The search space: what is refused, which points a strategy gives, and what ten thousand cost."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from operations import lines_of

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.strategies import configurations

BASE: dict[str, Any] = {"name": "e", "model": {"base": "nano"}, "data": {"train": "train.jsonl"}}


def experiment(**sections: Any) -> Experiment:
    return Experiment.build({**BASE, **sections})


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"lora.rank": []}}, "no values, so the space is empty"),
        ({"space": {"lora.rnk": [1]}}, "did you mean 'lora.rank'"),
        ({"space": {"lora.alpha": [1.0]}}, "the Tinker API does not apply it"),
        ({"space": {"optimizer.learning_rate": [1e-3, 0.0]}}, "greater than 0"),
        ({"space": {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2}}}, "needs 'count'"),
        ({"space": {"lora.seed": list(range(400)), "lora.rank": list(range(1, 400))}}, "at most"),
        ({"strategy": "random", "space": {"lora.rank": [1]}}, "needs search.trials"),
        ({"strategy": "random", "trials": 3}, "needs a search.space"),
        ({"strategy": "random", "trials": 3, "space": {"lora.rank": []}}, "no values"),
        ({"strategy": "list"}, "needs search.configs"),
        ({"space": {"train.max_length": [8, 16]}}, "cannot vary: the rows are tokenised once"),
        ({"space": {"train.eval_every": [8, 16]}}, "cannot vary: .*changes no number"),
        ({"space": {"train.max_steps": [8, 16]}}, "the longer trial passes through the shorter"),
        ({"space": {"model.base": ["a", "b"]}}, "'model.base' cannot vary: .*different questions"),
        ({"strategy": "list", "configs": [{"lora.rnk": 1}]}, "unknown axis"),
    ],
)
def test_impossible_searches_are_refused(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configurations(experiment(search=search))


def test_grid_is_the_product_with_exact_ends() -> None:
    space = {
        "lora.rank": [4, 16],
        "optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True, "count": 4},
    }
    points = configurations(experiment(search={"space": space}))
    assert len(points) == 8
    assert [p["optimizer.learning_rate"] for p in points[:4]] == [1e-5, 1e-4, 1e-3, 1e-2]


def test_integer_axes_are_rounded_and_deduplicated() -> None:
    space = {"lora.rank": {"low": 1, "high": 3, "count": 9}}
    points = configurations(experiment(search={"space": space}))
    assert [p["lora.rank"] for p in points] == [1, 2, 3]


def test_random_draws_are_seeded_and_inside_the_space() -> None:
    space = {
        "lora.rank": {"low": 2, "high": 64, "log": True},
        "optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "optimizer.schedule": ["linear", "cosine"],
    }

    def draw(seed: int) -> list[dict[str, Any]]:
        search = {"strategy": "random", "trials": 20, "seed": seed, "space": space}
        return configurations(experiment(search=search))

    points = draw(1)
    assert points == draw(1) != draw(2)
    assert all(2 <= p["lora.rank"] <= 64 and isinstance(p["lora.rank"], int) for p in points)
    assert {p["optimizer.schedule"] for p in points} == {"linear", "cosine"}


def test_listed_configurations_run_once_each() -> None:
    configs = [{"lora.rank": 1}, {"lora.rank": 2}, {"lora.rank": 1}]
    points = configurations(experiment(search={"strategy": "list", "configs": configs}))
    assert points == [{"lora.rank": 1}, {"lora.rank": 2}]


def test_what_is_the_same_trial_is_one_configuration() -> None:
    configs = [{}, {"lora.rank": 8}, {"lora.rank": 8, "lora.seed": 1}]
    points = configurations(experiment(search={"strategy": "list", "configs": configs}))
    assert points == [{}, {"lora.rank": 8, "lora.seed": 1}]


def test_lengths_vary_where_they_decide_the_rate() -> None:
    search = {"space": {"train.max_steps": [8, 16]}}
    points = configurations(experiment(search=search, optimizer={"schedule": "cosine"}))
    assert points == [{"train.max_steps": 8}, {"train.max_steps": 16}]


@pytest.mark.parametrize("axis", [[1, 2, 4], {"low": 1, "high": 3}])
def test_draws_are_distinct_and_end_with_the_space(axis: Any) -> None:
    def draw(trials: int) -> list[int]:
        search = {"strategy": "random", "trials": trials, "space": {"lora.rank": axis}}
        return [p["lora.rank"] for p in configurations(experiment(search=search))]

    assert len(draw(2)) == 2
    assert len(set(draw(5))) == len(draw(5)) == 3
    assert draw(5)[:2] == draw(2)


def test_more_trials_keep_the_earlier_ones() -> None:
    space = {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}

    def draw(trials: int) -> list[dict[str, Any]]:
        return configurations(
            experiment(search={"strategy": "random", "trials": trials, "space": space})
        )

    assert draw(9)[:5] == draw(5)


def test_a_configuration_costs_the_same_beside_ten_thousand() -> None:
    """They took a quarter of an hour and 15 MB a thousand: each point validated all others."""

    def whole(count: int) -> Experiment:
        configs = [{"lora.rank": 1 + i % 999, "lora.seed": i} for i in range(count)]
        return experiment(search={"strategy": "list", "configs": configs})

    few, many = whole(100), whole(10_000)
    points = configurations(many)
    assert len(points) == 10_000
    lines = [lines_of(lambda w=w: configurations(w)).total() for w in (few, whole(1_000))]
    assert lines[1] < 11 * lines[0]
    assert len(pickle.dumps(many.configured(points[0]))) < 4_000
