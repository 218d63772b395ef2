"""Experiments: what is refused and how the refusal helps; identity; the search space."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.config import AxisRange, Experiment, axis_keys, parse_assignment
from crucible_tinkex.config.section import leaves
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.recipes.schedule import learning_rate

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
        ({"optimzer": {}}, "did you mean 'optimizer'.*legal here: budget, checkpoints, data"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate: .*greater than 0"),
        ({"optimizer": {"learning_rate": math.nan}}, "finite"),
        ({"lora": {"rank": 0}}, "lora.rank: .*greater than or equal to 1"),
        ({"lora": {"train_attn": False, "train_mlp": False}}, "at least one of"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"data": {}}, "missing key 'data.train'"),
        ({"data": {"train": ""}}, "data.train: it must name a file"),
        ({"data": {"train": []}}, "data.train: it must name at least one file"),
        ({"data": {"train": ["a.jsonl", ""]}}, "data.train.1: it must name a file"),
        ({"data": {"train": [{"weight": 2}]}}, "missing key 'data.train.0.path'"),
        (
            {"data": {"train": [{"path": "a", "weight": 0}]}},
            "data.train.0.weight: Input should be greater than 0",
        ),
        (
            {"data": {"train": [{"path": "a", "wieght": 1}]}},
            "'data.train.0.wieght'; did you mean 'weight'. legal here: path, weight$",
        ),
        (
            {"data": {"train": "a", "eval": "b", "eval_rows": 3}},
            "data: give one of data.eval and data.eval_rows",
        ),
        ({"run": {"storage": "a\0b"}}, "run.storage: it must name a file"),
        ({"search": {"seeds": []}}, "search.seeds"),
        ({"search": {"seeds": [1, 1]}}, "distinct"),
        ({"search": {"space": {"lora.rank": {"low": 4, "hgh": 8}}}}, "did you mean 'high'"),
        ({"search": {"space": {"lora.rank": {"low": 8, "high": 4}}}}, "must be below high"),
        ({"name": "../etc"}, "name"),
        ({"run": {"sessions_per_actor": 0}}, "sessions_per_actor: .*at least 1"),
        (
            {"run": {"max_concurrent": 0}},
            "run.max_concurrent: .* greater than or equal to 1, or .*'auto' .got 0.$",
        ),
        ({"run": {"max_concurrent": 10_001}}, "max_concurrent: .* equal to 10000, or .*'auto'"),
        ({"search": {"confirm": -1}}, "search.confirm: .* equal to 0, or .*'auto' .got -1.$"),
        ({"search": {"stopping": {"keep": 0}}}, "search.stopping.keep: .* to 1, or .* list"),
        ({"run": {"executor": "rey"}}, "run.executor: .*'ray' or 'local'"),
        ({"search": {"metric": "eval/acc"}}, "search.metric: .*did you mean 'eval/accuracy'"),
        ({"search": {"metric": "perf/step_s"}}, "cannot rank trials; choose one of eval/nll"),
        ({"search": {"metric": "eval/accuracy"}, "evaluation": {"generate": False}}, "generate ="),
        ({"search": {"at": "last"}}, "search.at: .*'final' or 'best'"),
        ({"search": {"stopping": {"rule": "halving", "eta": 1}}}, "search.stopping.eta: .*2"),
        ({"search": {"stopping": {"first_rung": 0}}}, "search.stopping.first_rung: .*1"),
        ({"search": {"stopping": {"rul": "none"}}}, "did you mean 'rule'"),
        ({"search": {"space": {"lora.rank": 8}}}, "search.space.lora.rank: .* be a list .*got 8"),
        ({"search": {"seeds": 3}}, "search.seeds: .* be a list .*got 3"),
        ({"search": {"space": 3}}, "search.space: .* be a table"),
        ({"service": {"base_url": "embeded"}}, "service.base_url: did you mean 'embedded'"),
        ({"service": {"base_url": "tinker.example"}}, "base_url: it must be 'embedded' or https"),
        ({"service": {"allow_http": 3}}, "service.allow_http: .*boolean.*, or .*list"),
    ],
)
def test_bad_values_are_refused_with_the_key(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        experiment(**sections)
    assert e.value.exit_code == 2


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no experiment file"):
        Experiment.from_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML: .*line 1[^;]*$"):
        Experiment.from_toml(broken)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ConfigError, match=r"rows.jsonl is not valid TOML.*crucible tune"):
        Experiment.from_toml(rows)
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


def test_a_byte_order_mark_in_front_of_the_file_is_read_over(tmp_path: Path) -> None:
    file = _written(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Experiment.from_toml(file).name == "x"


def test_overrides_reach_into_the_search(tmp_path: Path) -> None:
    file = _written(tmp_path)
    text = '[search.space]\n"lora.rank" = [4, 16]\noptimizer.beta1 = { low = 0.5, high = 0.9 }\n'
    file.write_text(file.read_text() + text)
    overrides = {
        "search.space.lora.rank": [8],
        "search.space.optimizer.beta1.count": 3,
        "search.space.lora.seed": [1, 2],
        "search.metric": "eval/accuracy",
    }
    search = Experiment.from_toml(file, overrides=overrides).search
    assert search.space["lora.rank"] == (8,)
    assert search.space["optimizer.beta1"] == AxisRange(low=0.5, high=0.9, count=3)
    assert search.space["lora.seed"] == (1, 2)
    assert search.objective_direction == "max"
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        Experiment.from_toml(file, overrides={"search.space.optimizer.beta1.cuont": 3})


def test_overrides_reach_into_listed_configurations(tmp_path: Path) -> None:
    file = _written(tmp_path)
    file.write_text(file.read_text() + '[[search.configs]]\n"lora.rank" = 4\nlora.seed = 1\n')
    found = Experiment.from_toml(file, overrides={"search.configs.0.lora.rank": 8})
    assert found.search.configs == ({"lora.rank": 8, "lora.seed": 1},)
    for key in ("search.configs.1.lora.rank", "search.configs.x"):
        with pytest.raises(ConfigError, match="must be a position, 0 to 0"):
            Experiment.from_toml(file, overrides={key: 8})


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({}, 19),
        ({"max_steps": 1000}, 1000),
        ({"epochs": 2}, 38),
        ({"epochs": 2, "max_steps": 1000}, 38),
        ({"epochs": 2, "max_steps": 20}, 20),
        ({"epochs": 0.5}, 10),
    ],
)
def test_steps_are_what_was_asked_for(train: dict[str, Any], steps: int) -> None:
    assert experiment(train=train).train.steps(150) == steps


@pytest.mark.parametrize(
    ("search", "direction"),
    [
        ({}, "min"),
        ({"metric": "eval/accuracy"}, "max"),
        ({"metric": "train/nll"}, "min"),
        ({"metric": "eval/accuracy", "direction": "min"}, "min"),
    ],
)
def test_the_direction_is_the_metrics_own_unless_said(
    search: dict[str, Any], direction: str
) -> None:
    assert experiment(search=search).search.objective_direction == direction


def test_a_files_direction_is_that_of_its_metric(tmp_path: Path) -> None:
    file = _written(tmp_path)
    bare = Experiment.from_toml(file, overrides={"search.metric": "eval/accuracy"})
    assert bare.search.objective_direction == "max"
    file.write_text(file.read_text() + '[search]\nmetric = "eval/nll"\ndirection = "min"\n')
    found = Experiment.from_toml(file, overrides={"search.metric": "eval/accuracy"})
    assert found.search.objective_direction == "max"
    both = {"search.metric": "eval/accuracy", "search.direction": "min"}
    asked = Experiment.from_toml(file, overrides=both)
    assert asked.search.objective_direction == "min"
    assert "calls the worst eval/accuracy the best" in asked.warnings()[0]


def test_the_old_name_of_a_base_is_an_alias() -> None:
    old, new = (experiment(model={"base": f"smollm2-135m{s}"}) for s in ("", "-instruct"))
    assert old == new
    assert old.model.base == "smollm2-135m-instruct"


def test_a_trials_experiment_has_its_values_and_no_search() -> None:
    space = {"lora.rank": [4, 16], "train.batch_size": [1, 2]}
    search = {"metric": "eval/accuracy", "direction": "min", "at": "best", "space": space}
    whole = experiment(search={**search, "seeds": [1, 2], "configs": [{"lora.rank": 1}]})
    trial = whole.configured({"lora.rank": 16, "train.batch_size": 2})
    assert (trial.lora.rank, trial.train.batch_size) == (16, 2)
    assert trial.search.model_dump(exclude_defaults=True) == {
        "metric": "eval/accuracy",
        "direction": "min",
        "at": "best",
    }
    assert whole.lora.rank == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora.rank": 0}, "search space: lora.rank: .*greater than or equal to 1"),
        ({"lora.rnk": 1}, "unknown key 'lora.rnk'; did you mean 'rank'"),
        ({"lora.train_attn": False, "lora.train_mlp": False}, "at least one of"),
        ({"nothing.x": 1}, "no section 'nothing'"),
        ({"configured": 1}, "no section 'configured'"),
    ],
)
def test_values_that_no_trial_can_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment().configured(values)


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


# --- whatever is written ----------------------------------------------------------------------

KEYS = [
    *(key for key, _ in leaves(experiment(search={"space": {"lora.rank": [1]}}).model_dump())),
    *(f"search.space.{key}" for key in axis_keys()),
    *("search", "search.space", "search.space.lora", "search.space.lora.rank.count", "run", "name"),
    *("search.configs.0", "search.configs.0.lora.rank", "data", "", "..", "a.b"),
]
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 10**30, 1.5, math.nan, math.inf, "", "x", "../..", "\0"),
    *("s3://b/k", "random", "list", "halving", "embedded", "eval/accuracy", "linear", "x" * 5000),
    *([], [1], [1, "a", None], ["a"], [[1]], [{}], [True, False], [0.1, 1e-3]),
    *({}, {"low": 1, "high": 3}, {"low": 1, "high": 3, "count": 3}, {"a": {"b": 1}}),
    *([{"lora.rank": 1}, {"lora": {"rank": 2}}], [{"lora": 3}]),
]


@settings(max_examples=300, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_assignment_gives_an_experiment_or_a_config_error(overrides: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = _written(Path(folder))
        file.write_text(file.read_text() + '[[search.configs]]\n"lora.rank" = 1\n')
        try:
            found = Experiment.from_toml(file, overrides=overrides)
        except ConfigError as error:
            assert any(where in str(error) for where in (str(file), *map(repr, overrides)))
            return
    found.warnings(rows=7, tokens=90)
    found.trial_settings(total_steps=found.train.steps(7))
    sweep = Path(found.run.storage if "://" not in found.run.storage else "/r") / "s"
    assert Experiment.loaded(found.stored(sweep), sweep).contradictions(found) == []
