"""The space: axes that go together, conditions, keys that are active only sometimes; whatever is
declared, every configuration is inside, allowed, and there once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.config import AxisRange
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.points.dimensions import dimensions
from crucible_tinkex.search.points.space import Space, trial_settings
from crucible_tinkex.search.strategies import configurations, warnings
from experiments import RATE, RATES, experiment

SCHEDULES = {"optimizer.schedule": ["constant", "linear"], "optimizer.warmup_steps": [1, 2]}
ONLY_DECAYING = {"optimizer.warmup_steps": "optimizer.schedule != 'constant'"}


def grid(**search: Any) -> list[dict[str, Any]]:
    return configurations(experiment(search))


def test_axes_that_go_together_are_one() -> None:
    space = {"lora.rank": [4, 8, 16], RATE: [3e-3, 2e-3, 1e-3], "lora.seed": [1, 2]}
    found = grid(space=space, zip=[["lora.rank", RATE]])
    pairs = [(v["lora.rank"], v[RATE]) for v in found]
    assert pairs == [(4, 3e-3), (4, 3e-3), (8, 2e-3), (8, 2e-3), (16, 1e-3), (16, 1e-3)]
    drawn = grid(strategy="random", trials=6, space=space, zip=[["lora.rank", RATE]])
    assert {(v["lora.rank"], v[RATE]) for v in drawn} == set(pairs)


def test_a_range_with_points_pairs_with_a_list() -> None:
    space = {"lora.rank": [4, 8], RATE: {"low": 1e-3, "high": 1e-2, "count": 2}}
    found = grid(space=space, zip=[["lora.rank", RATE]])
    assert found == [{"lora.rank": 4, RATE: 1e-3}, {"lora.rank": 8, RATE: 1e-2}]


def test_conditions_leave_out_points() -> None:
    space = {"lora.rank": [4, 8, 16], "train.batch_size": [8, 32, 64]}
    found = grid(space=space, where=["lora.rank * train.batch_size <= 512", "lora.rank > 4"])
    assert [tuple(v.values()) for v in found] == [(8, 8), (8, 32), (8, 64), (16, 8), (16, 32)]


def test_a_condition_sees_what_does_not_vary() -> None:
    search = {"space": {"lora.rank": [4, 8]}, "where": ["lora.rank <= train.batch_size"]}
    assert configurations(experiment(search, train={"batch_size": 4})) == [{"lora.rank": 4}]


def test_a_key_varies_only_when_its_condition_holds() -> None:
    found = grid(space=SCHEDULES, when=ONLY_DECAYING)
    assert found == [
        {"optimizer.schedule": "constant"},
        {"optimizer.schedule": "linear", "optimizer.warmup_steps": 1},
        {"optimizer.schedule": "linear", "optimizer.warmup_steps": 2},
    ]


def test_lengths_may_vary_under_the_schedules_that_decay() -> None:
    space = {"optimizer.schedule": ["constant", "cosine"], "train.max_steps": [8, 16]}
    with pytest.raises(ConfigError, match=r"search\.when\.train\.max_steps = "):
        grid(space=space)
    found = grid(space=space, when={"train.max_steps": "optimizer.schedule != 'constant'"})
    assert len(found) == 3


def test_conditions_may_need_each_other_but_not_in_a_circle() -> None:
    space = {**SCHEDULES, "optimizer.beta1": [0.8, 0.85]}
    when = {"optimizer.beta1": "optimizer.warmup_steps == 2", **ONLY_DECAYING}
    assert len(grid(space=space, when=when)) == 4
    when = {**when, "optimizer.warmup_steps": "optimizer.beta1 > 0.8"}
    with pytest.raises(ConfigError, match=r"search.when: .*needs.*: a circle"):
        grid(space=space, when=when)


def test_float_noise_makes_no_second_trial() -> None:
    assert len(grid(space={RATE: [1e-3, 1e-3 * (1 + 1e-15), 10**-3.5, 10**-3.5 + 1e-17]})) == 2


def test_guesses_come_first_and_count() -> None:
    guess = {"lora.rank": 8, RATE: 1e-3}
    space = {RATE: RATES}
    found = grid(strategy="random", trials=3, space=space, enqueue=[guess, guess])
    assert found[0] == guess and len(found) == 3
    assert grid(space={"lora.rank": [2, 4]}, enqueue=[{"lora.rank": 4}]) == [
        {"lora.rank": 4},
        {"lora.rank": 2},
    ]


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": {"lora.rank": [1, 2]}, "where": ["lora.rank > 2"]}, "excludes every point"),
        (
            {"strategy": "qmc", "trials": 3, "space": {RATE: RATES}, "where": [f"{RATE} > 2"]},
            "search.where excludes all of 20,000 points",
        ),
        ({"space": {"lora.rank": [1]}, "where": ["lora.rnk > 2"]}, "did you mean 'lora.rank'"),
        ({"space": {"lora.rank": [1]}, "where": ["model.base > 2"]}, "'model.base' cannot vary"),
        ({"space": {"lora.rank": [1]}, "where": ["data.train > 2"]}, "data.train = None: "),
        (
            {"space": {"lora.rank": [1]}, "where": ["lora.rank >"]},
            "where: .*is no condition",
        ),
        ({"space": {"lora.rank": [1]}, "where": ["f(1)"]}, r"'f\(1\)' cannot stand in a condition"),
        ({"space": {"lora.rank": [1]}, "when": {"lora.seed": "1 < 2"}}, "'lora.seed' is no axis"),
        ({"space": {"lora.rank": [1]}, "when": {"lora.rank": "a b"}}, "is no condition"),
        ({"space": {"lora.rank": [1, 2]}, "zip": [["lora.rank"]]}, "two keys or more"),
        ({"space": {"lora.rank": [1]}, "zip": [["lora.rank", RATE]]}, "is no axis of search.space"),
        (
            {
                "space": {"lora.rank": [1, 2], "lora.seed": [1]},
                "zip": [["lora.rank", "lora.seed"]],
            },
            "as many values each; lora.rank has 2, lora.seed has 1",
        ),
        (
            {"space": {"lora.rank": [1, 2], RATE: RATES}, "zip": [["lora.rank", RATE]]},
            "lora.rank has 2, optimizer.learning_rate has 0",
        ),
        (
            {
                "space": {"lora.rank": [1], "lora.seed": [1]},
                "zip": [["lora.rank", "lora.seed"]] * 2,
            },
            "stands there twice",
        ),
        ({"space": {"data.eval": ["a", "b"]}}, "'data.eval' cannot vary: trials that answer"),
        (
            {"space": {"data": {"train_on": ["everything"]}}},
            "'data.train_on' cannot vary: all rows",
        ),
        ({"space": {"data.train": []}}, "'data.train' has no values"),
        ({"space": {"service.dtype": ["a"]}}, "'service.dtype' cannot vary: trials that answer"),
        ({"space": {}, "enqueue": [{"lora.rnk": 1}]}, "search.enqueue: unknown axis 'lora.rnk'"),
        ({"strategy": "tpe", "space": {RATE: RATES}}, "'tpe' needs search.trials"),
        ({"strategy": "cmaes", "trials": 9}, "'cmaes' needs a search.space"),
        ({"strategy": "tpe", "trials": 9, "space": {"lora.rank": []}}, "no values"),
        ({"strategy": "tpe", "trials": 0, "space": {"lora.rank": [1]}}, "search.trials: .* 1"),
        (
            {"strategy": "tpe", "trials": 9, "space": {RATE: {"low": 0.0, "high": 1.0}}},
            "learning_rate: .*greater than 0",
        ),
    ],
)
def test_impossible_spaces_are_refused_by_name(search: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configurations(experiment(search))


def test_fewer_configurations_than_asked_are_said() -> None:
    for strategy in ("random", "qmc", "tpe"):
        search = {"strategy": strategy, "trials": 9, "space": {"lora.rank": [1, 2, 4]}}
        asked = experiment(search, run={"max_concurrent": 1})
        found = list(warnings(asked, configurations(asked)))
        assert "search.trials = 9, but the space has only 3 configurations: all run" in found


# --- whatever is declared -----------------------------------------------------------------------


def _ranges(low: float, high: float) -> st.SearchStrategy[Any]:
    bounds = st.lists(st.floats(low, high), min_size=2, max_size=2, unique=True).map(sorted)
    made = st.builds(
        lambda b, log, n: {"low": b[0], "high": b[1], "log": log, "count": n},
        bounds,
        st.booleans(),
        st.integers(1, 4),
    )
    return made.filter(lambda axis: f"{axis['low']:.6g}" != f"{axis['high']:.6g}")


AXES = {
    "lora.rank": st.one_of(
        st.lists(st.integers(1, 64), min_size=1, max_size=4),
        st.builds(
            lambda low, more, log: {"low": low, "high": low + more, "log": log, "count": 3},
            st.integers(1, 9),
            st.integers(1, 200),
            st.booleans(),
        ),
    ),
    RATE: st.one_of(
        _ranges(1e-6, 1.0), st.lists(st.sampled_from([1e-4, 1e-3, 1e-2]), min_size=1, max_size=3)
    ),
    "optimizer.schedule": st.lists(
        st.sampled_from(["constant", "linear", "cosine"]), min_size=1, max_size=3
    ),
    "lora.train_unembed": st.just([True, False]),
    "train.batch_size": st.lists(st.integers(1, 64), min_size=1, max_size=3),
}
SPACES = st.sets(st.sampled_from(sorted(AXES)), min_size=1).flatmap(
    lambda keys: st.fixed_dictionaries({key: AXES[key] for key in sorted(keys)})
)


@settings(max_examples=150, derandomize=True)
@given(SPACES, st.sampled_from(["grid", "random", "qmc"]), st.booleans(), st.booleans())
def test_every_configuration_is_inside_allowed_and_there_once(
    axes: dict[str, Any], strategy: str, filtered: bool, conditional: bool
) -> None:
    search: dict[str, Any] = {"space": axes, "strategy": strategy, "trials": 12}
    if filtered:
        search["where"] = ["lora.rank * train.batch_size <= 256"]
    if conditional and "lora.rank" in axes:
        search["when"] = {"lora.rank": "optimizer.schedule != 'linear'"}
    asked = experiment(search)
    space = Space(asked)
    try:
        found = configurations(asked)
    except ConfigError as error:
        assert filtered and "exclude" in str(error)
        return
    assert found == configurations(experiment(search)), "the same file asks for the same"
    identities = [trial_settings(asked, values) for values in found]
    assert len(set(identities)) == len(identities)
    for values in found:
        configured = asked.configured(values)
        places = space.places(values)
        assert places is not None and all(0 <= place <= 1 for place in places)
        if filtered:
            assert configured.lora.rank * configured.train.batch_size <= 256
        if "when" in search:
            assert ("lora.rank" in values) == (configured.optimizer.schedule != "linear")
        for key, value in values.items():
            axis = asked.search.space[key]
            inside = (
                axis.low - 1e-9 <= value <= axis.high + 1e-9
                if isinstance(axis, AxisRange)
                else value in axis
            )
            assert inside, (key, value)


@settings(max_examples=150, derandomize=True)
@given(SPACES, st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5))
def test_a_row_stands_where_it_was_drawn(axes: dict[str, Any], drawn: list[float]) -> None:
    declared = experiment({"space": axes}).search.space
    for dimension, place in zip(dimensions(declared, ()), drawn, strict=False):
        row = dimension.at(place)
        found = dimension.place(dict(zip(dimension.keys, row, strict=True)))
        assert found is not None and dimension.at(found) == row


def test_every_value_of_an_axis_is_as_probable() -> None:
    space = experiment({"space": {"lora.rank": {"low": 1, "high": 4}, "lora.seed": [5, 6, 7]}})
    for dimension in dimensions(space.search.space, ()):
        rows = [dimension.at(i / 1200) for i in range(1200)]
        counts = [len(list(group)) for _, group in itertools.groupby(rows)]
        assert counts == pytest.approx([1200 / len(counts)] * len(counts), abs=1)


COUNTED = {"low": 1, "high": 3, "count": 8}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"space": {"lora.rank": [2, 2, 4]}},
            ["search.space: 'lora.rank': left out as repetitions: 1;"],
        ),
        (
            {
                "space": {"lora.rank": [2, 4, 2], RATE: [1e-3, 2e-3, 1e-3]},
                "zip": [("lora.rank", RATE)],
            },
            [f"search.space: 'lora.rank', '{RATE}': left out as repetitions: 1;"],
        ),
        (
            {"space": {"lora.rank": COUNTED}},
            ["search.space: 'lora.rank': left out as repetitions: 5;"],
        ),
        ({"space": {"lora.rank": COUNTED}, "strategy": "random", "trials": 3}, []),
        (
            {"space": {"lora.rank": [2, 2]}, "strategy": "random", "trials": 1},
            ["search.space: 'lora.rank': left out as repetitions: 1;"],
        ),
        (
            {"strategy": "list", "configs": [{"lora.rank": 2}, {"lora.rank": 2}, {"lora.rank": 4}]},
            ["search.configs: left out as repetitions: 1;"],
        ),
        ({"space": SCHEDULES, "when": ONLY_DECAYING}, []),
        ({"space": {"lora.rank": [2, 4]}, "enqueue": [{"lora.rank": 4}]}, []),
    ],
)
def test_what_is_asked_for_twice_is_one_and_that_is_said(
    search: dict[str, Any], said: list[str]
) -> None:
    asked = experiment(search)
    found = list(warnings(asked, configurations(asked)))
    assert len(found) == len(said)
    assert all(map(str.startswith, found, said)), found
