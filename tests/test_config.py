"""Experiments: what is refused and how the refusal helps; identity; the search space."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.config import Experiment, parse_assignment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.training.schedule import learning_rate

BASE: dict[str, Any] = {
    "name": "e",
    "model": {"base": "nano"},
    "data": {"train": "train.jsonl"},
}


def experiment(**sections: Any) -> Experiment:
    return Experiment.build({**BASE, **sections})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"optimzer": {}}, "did you mean 'optimizer'.*legal here: data, evaluation"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate: .*greater than 0"),
        ({"optimizer": {"learning_rate": math.nan}}, "finite"),
        ({"lora": {"rank": 0}}, "lora.rank: .*greater than or equal to 1"),
        ({"lora": {"train_attn": False, "train_mlp": False}}, "at least one of"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"data": {}}, "missing key 'data.train'"),
        ({"search": {"seeds": []}}, "search.seeds"),
        ({"search": {"seeds": [1, 1]}}, "distinct"),
        ({"search": {"space": {"lora.rank": {"low": 4, "hgh": 8}}}}, "did you mean 'high'"),
        ({"search": {"space": {"lora.rank": {"low": 8, "high": 4}}}}, "must be below high"),
        ({"name": "../etc"}, "name"),
        ({"run": {"sessions_per_actor": 0}}, "at least 1"),
    ],
)
def test_bad_values_are_refused_with_the_key(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        experiment(**sections)
    assert e.value.exit_code == 2


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"lora.rank": []}}, "no values, so the grid is empty"),
        ({"space": {"lora.rnk": [1]}}, "did you mean 'lora.rank'"),
        ({"space": {"lora.alpha": [1.0]}}, "the Tinker API does not apply it"),
        ({"space": {"optimizer.learning_rate": [1e-3, 0.0]}}, "greater than 0"),
        ({"space": {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2}}}, "needs 'count'"),
        ({"space": {"lora.seed": list(range(400)), "lora.rank": list(range(1, 400))}}, "at most"),
        ({"strategy": "random", "space": {"lora.rank": [1]}}, "needs search.trials"),
        ({"strategy": "random", "trials": 3}, "needs a search.space"),
        ({"strategy": "list"}, "needs search.configs"),
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


def test_identity_is_of_the_work_not_of_the_place() -> None:
    same = experiment(name="other", run={"max_concurrent": 1, "storage": "elsewhere"})
    assert same.identity("d") == experiment().identity("d")
    assert experiment().identity("d") != experiment().identity("other data")
    assert experiment(train={"epochs": 2}).identity("d") != experiment().identity("d")


def test_file_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text('[model]\nbase = "nano"\n[data]\ntrain = "data/x.jsonl"\n')
    found = Experiment.from_toml(file, overrides={"optimizer.learning_rate": 0.5})
    assert found.name == "exp"
    assert found.data.train == str(tmp_path / "data" / "x.jsonl")
    assert found.optimizer.learning_rate == 0.5


def test_a_tokenizer_is_a_folder_beside_the_file_or_a_name_on_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    (tmp_path / "mine").mkdir()
    for given, expected in (("mine", str(tmp_path / "mine")), ("org/name", "org/name")):
        file.write_text(f'[model]\nbase = "b"\ntokenizer = "{given}"\n[data]\ntrain = "x.jsonl"\n')
        assert Experiment.from_toml(file).model.tokenizer == expected


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no experiment file"):
        Experiment.from_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML: .*line 1"):
        Experiment.from_toml(broken)
    with pytest.raises(ConfigError, match="is not a section"):
        Experiment.from_toml(_written(tmp_path), overrides={"name.x": 1})


def _written(folder: Path) -> Path:
    file = folder / "ok.toml"
    file.write_text('name = "x"\n[model]\nbase = "nano"\n[data]\ntrain = "x"\n')
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1e-4", ("a.b", 1e-4)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=plain words", ("a", "plain words")),
        ('a="x=y"', ("a", "x=y")),
    ],
)
def test_assignments(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


def test_not_applied_settings_are_accepted_and_reported() -> None:
    found = experiment(lora={"alpha": 16.0, "target_modules": ["q_proj"]})
    assert found.not_applied() == ["lora.alpha", "lora.target_modules"]
    assert experiment().not_applied() == []


def test_schedules() -> None:
    optimizer = experiment(
        optimizer={"learning_rate": 1.0, "schedule": "linear", "warmup_steps": 2}
    ).optimizer
    rates = [learning_rate(optimizer, step=s, total_steps=6) for s in range(1, 7)]
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = optimizer.model_copy(update={"schedule": "cosine", "warmup_steps": 0})
    rates = [learning_rate(cosine, step=s, total_steps=4) for s in range(1, 5)]
    assert rates == pytest.approx([1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    constant = optimizer.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, step=6, total_steps=6) == 1.0
