"""The recipe of `auto`: what it spends, whom it drops, which neighbours it knows."""

from __future__ import annotations

import math

import pytest

from crucible_tinkex.search import auto

AXES = {"rate": [1e-4, 1e-3, 1e-2], "schedule": ["constant", "linear", "cosine"], "flag": [True]}


def test_a_recipe_has_ascending_rungs_that_fewer_and_fewer_pass() -> None:
    plan = auto.recipe(60, 90)
    steps = [step for step, _ in plan.rungs]
    passing = [keep for _, keep in plan.rungs]
    assert plan.first == 60 and steps == sorted(set(steps)) and steps[-1] < 90
    assert passing == sorted(passing, reverse=True) and passing[-1] >= 1


@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_where_there_is_nothing_to_save_nothing_is_stopped(candidates: int) -> None:
    plan = auto.recipe(candidates, 90)
    assert plan.rungs == () and plan.cost == candidates


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 780])
def test_rungs_of_short_trials_stay_before_their_end(steps: int) -> None:
    plan = auto.recipe(20, steps)
    assert all(0 < step < steps for step, _ in plan.rungs)
    assert plan.cost <= 20


def test_a_recipe_costs_what_its_trials_cost() -> None:
    plan = auto.Recipe(first=9, rungs=((10, 3), (30, 1)), total_steps=90)
    assert plan.cost == pytest.approx((9 * 10 + 3 * 20 + 1 * 60) / 90)


@pytest.mark.parametrize("budget", [2.0, 6.0, 10.0])
def test_a_budget_cuts_the_candidates_and_leaves_half_for_the_neighbours(budget: float) -> None:
    plan = auto.recipe(60, 90, budget)
    assert plan.first == 1 or plan.cost <= budget / 2
    assert plan.first < auto.recipe(60, 90).first
    assert auto.recipe(60, 90, 1e9) == auto.recipe(60, 90)


def test_without_candidates_there_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        auto.recipe(0, 10)


def test_neighbours_are_one_place_away_and_words_are_all_near() -> None:
    start = {"rate": 1e-4, "schedule": "constant", "flag": True}
    found = list(auto.neighbours(start, AXES))
    assert found == [
        {**start, "rate": 1e-3},
        {**start, "schedule": "linear"},
        {**start, "schedule": "cosine"},
    ]


def test_a_neighbour_goes_on_while_it_is_not_far_behind_the_leader() -> None:
    assert auto.worth_it(0.9, 1.0) and auto.worth_it(1.0 + auto.MARGIN / 2, 1.0)
    assert not auto.worth_it(1.0 + 2 * auto.MARGIN, 1.0)
    assert not auto.worth_it(math.nan, 1.0) and not auto.worth_it(math.inf, 1.0)


@pytest.mark.parametrize(("candidates", "first"), [(60, 20), (7, 4), (3, 3), (1, 1)])
def test_a_prior_leaves_the_unlikely_out_but_never_too_few_in(candidates: int, first: int) -> None:
    assert auto.recipe(candidates, 90, informed=True).first == first
