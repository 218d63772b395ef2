"""Strategy `auto` as settings: what is left open is chosen, what is given stays."""

from __future__ import annotations

from typing import Any

import pytest

from crucible_tinkex.config import AxisRange, Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.auto_settings import OPEN, Chosen, chosen, kept, open_settings
from crucible_tinkex.search.learned.records import RANK, RATE, Record, published
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.strategies import configurations, warnings
from experiments import experiment

RECORDS = published()


def auto(
    steps: int = 100,
    records: Any = RECORDS,
    budget: Any = None,
    base: str = "smollm2-135m-instruct",
    **search: Any,
) -> Chosen:
    asked = experiment({"strategy": "auto", **search}, model={"base": base})
    return chosen(asked, steps=steps, records=records, budget=budget)


def test_nothing_given_is_a_whole_search() -> None:
    found = auto().experiment.search
    rates = found.space[RATE]
    assert isinstance(rates, AxisRange) and 1e-5 <= rates.low < rates.high <= 1e-2 and rates.log
    assert found.space[RANK] == (4, 8, 16, 32, 64)
    assert found.enqueue and all(guess.keys() == {RATE, RANK} for guess in found.enqueue)
    assert (found.trials, found.confirm, found.confirm_top) == (36, 2, 2)
    assert stopping_rule(found).rungs(100) == (5, 34, 68, 100)
    assert not open_settings(found)


def test_the_guesses_come_first() -> None:
    found = auto().experiment
    guesses = list(found.search.enqueue)
    assert configurations(found)[: len(guesses)] == guesses


def test_what_is_given_stays() -> None:
    space = {"train.batch_size": [4, 8, 16], RATE: [1e-4, 1e-3]}
    given = {"space": space, "trials": 5, "confirm": 0, "stopping": {"rule": "none"}}
    found = auto(**given).experiment.search
    assert found.trials == 5 and found.confirm == 0 and found.stopping.rules == ()
    assert found.enqueue == tuple(
        {"train.batch_size": 8, RATE: g[RATE]} for g in found.enqueue if g[RATE] in (1e-4, 1e-3)
    )
    assert found.enqueue and set(found.space) == set(space)


def test_a_space_without_rate_and_rank_has_no_guesses() -> None:
    assert auto(space={"train.batch_size": [4, 8]}).experiment.search.enqueue == ()


WARMUP, BATCH = "optimizer.warmup_steps", "train.batch_size"


@pytest.mark.parametrize(
    ("rest", "how", "middle"),
    [
        ({WARMUP: {"low": 1, "high": 4}}, {}, {WARMUP: 2}),  # whole numbers only, and 2.5 is none
        (
            {WARMUP: [1, 2], "optimizer.schedule": ["linear", "constant"]},
            {"when": {WARMUP: "optimizer.schedule != 'constant'"}},
            {"optimizer.schedule": "constant"},  # there the warm-up does not vary
        ),
        ({BATCH: [4, 8, 16]}, {"zip": [[BATCH, RANK]]}, {BATCH: 16}),  # goes with rank 64
    ],
)
def test_a_guess_is_a_configuration_of_the_space(rest: Any, how: Any, middle: Any) -> None:
    space = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, RANK: [4, 16, 64], **rest}
    found = auto(space=space, **how).experiment
    guesses = list(found.search.enqueue)
    assert guesses and configurations(found)[: len(guesses)] == guesses
    assert {k: v for k, v in guesses[0].items() if k not in (RATE, RANK)} == middle


def test_a_space_smaller_than_the_most_it_tries_is_nothing_to_warn_of() -> None:
    found = auto(space={RANK: [4, 8]}).experiment
    assert list(warnings(found, configurations(found))) == []


@pytest.mark.parametrize("best", [3e-3, 2e-2])
def test_own_sweeps_count_and_have_room_around_them(best: float) -> None:
    own = [
        Record("nano", rate, 8, 8, 100, abs(rate - best) + 1) for rate in (1e-4, 1e-3, 3e-3, 2e-2)
    ]
    found = auto(records=[*RECORDS, *own], base="nano")
    search, rates = found.experiment.search, found.experiment.search.space[RATE]
    assert search.enqueue[0] == {RATE: best, RANK: 8}
    assert isinstance(rates, AxisRange) and rates.low < best < rates.high
    assert any("the best of a finished sweep of nano in this storage" in n for n in found.notes)


def test_what_nothing_is_known_of_has_no_guess_and_the_whole_range() -> None:
    found = auto(base="nano")
    assert found.experiment.search.enqueue == ()
    assert found.experiment.search.space[RATE] == AxisRange(low=1e-5, high=1e-2, log=True)
    assert any(note.startswith("no guess: 'nano' is a toy") for note in found.notes)


@pytest.mark.parametrize("own", [{"lora": {"train_mlp": False}}, {"train": {"loss": "ppo"}}])
def test_what_learns_another_way_is_in_doubt(own: dict[str, Any]) -> None:
    asked = experiment({"strategy": "auto"}, model={"base": "smollm2-135m-instruct"}, **own)
    found = chosen(asked, steps=100, records=RECORDS)
    assert any("no recorded sweep learns with" in note for note in found.notes)


def test_no_records_is_said() -> None:
    found = auto(records=[])
    assert found.experiment.search.enqueue == ()
    assert found.experiment.search.space[RATE] == AxisRange(low=1e-5, high=1e-2, log=True)
    assert any("no finished sweep" in note for note in found.notes)


@pytest.mark.parametrize("budget", [0.5, 1, 2, 4, 8, 20])
def test_a_budget_is_not_planned_beyond(budget: float) -> None:
    found = auto(budget=budget).experiment.search
    confirmations = found.confirm * found.confirm_top
    assert confirmations <= budget / 2
    assert found.trials is not None and 1 <= found.trials <= 36


def test_what_does_not_pay_for_two_leaders_goes_to_the_search() -> None:
    found = auto(budget=3.9)
    small, enough = found.experiment.search, auto(budget=4).experiment.search
    assert small.confirm == 0 and enough.confirm == 1
    assert small.trials and enough.trials and small.trials > enough.trials
    assert any("goes to the search" in note for note in found.notes)
    assert not any("goes to the search" in note for note in auto(budget=4).notes)
    assert auto(budget=3.9, confirm=2).experiment.search.confirm == 2, "somebody's wish"


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_short_trials_have_rules_that_can_be_built(steps: int) -> None:
    rungs = stopping_rule(auto(steps=steps).experiment.search).rungs(steps)
    assert rungs[-1] == steps and list(rungs) == sorted(set(rungs))


def test_a_later_run_keeps_the_choices() -> None:
    first = auto().experiment
    again = kept(experiment({"strategy": "auto", "trials": 30}), first)
    assert again.search.trials == 30
    assert all(
        getattr(again.search, key) == getattr(first.search, key) for key in OPEN if key != "trials"
    )


def test_seeds_pass_together() -> None:
    assert auto(seeds=[0, 1, 2]).experiment.search.stopping.keep == 18


@pytest.mark.parametrize(
    "stopping",
    [{"rungs": [4, 2], "keep": [2, 1]}, {"rungs": [4], "keep": [2, 1]}, {"keep": [2, 1]}],
)
def test_rungs_and_keep_go_together(stopping: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rungs must rise"):
        experiment({"stopping": {"rule": "topk", **stopping}})


def test_an_open_auto_is_not_run() -> None:
    open_auto: Experiment = experiment({"strategy": "auto"})
    with pytest.raises(ConfigError, match=r"needs search\.trials"):
        configurations(open_auto)
