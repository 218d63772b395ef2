"""How `auto` looks: what it spends, where it looks next, and that it climbs to the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from crucible_tinkex.config import AxisRange
from crucible_tinkex.search import auto
from crucible_tinkex.search.auto import Look, next_places
from crucible_tinkex.search.neighbourhood import Neighbourhood
from crucible_tinkex.search.points.dimensions import Dimension, Places, dimensions

RATE = "optimizer.learning_rate"
GRID = dimensions(
    {
        RATE: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "lora.rank": (2, 8, 32),
        "optimizer.schedule": ("constant", "cosine", "linear"),
    },
    (),
)
RANGES = dimensions({RATE: AxisRange(low=1e-5, high=1e-2, log=True), "lora.rank": (4, 8, 16)}, ())


def middle(dims: list[Dimension]) -> Places:
    return tuple(d.place(dict(zip(d.keys, d.rows[0], strict=True))) or 0.5 for d in dims)


# --- what it spends -------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_where_there_is_nothing_to_save_nothing_is_stopped(trials: int) -> None:
    plan = auto.recipe(trials, 90)
    assert plan.rung is None and plan.cost == trials


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 780])
def test_the_rung_of_short_trials_stays_before_their_end(steps: int) -> None:
    plan = auto.recipe(20, steps)
    assert plan.rung is None or 0 < plan.rung < steps
    assert plan.cost <= 20


def test_a_recipe_costs_what_its_trials_cost() -> None:
    assert auto.Recipe(9, 10, 3, 90).cost == pytest.approx((9 * 10 + 3 * 80) / 90)


@pytest.mark.parametrize("budget", [1.0, 2.0, 4.0, 6.0])
def test_a_budget_lets_fewer_pass_then_fewer_begin(budget: float) -> None:
    plan, whole = auto.recipe(24, 100), auto.recipe(24, 100, budget)
    assert whole.cost <= budget or whole.trials == 1
    assert whole.keep < plan.keep
    assert whole.trials == plan.trials or whole.keep == auto.FEWEST_KEPT
    assert auto.recipe(24, 100, 1e9) == plan


def test_guesses_come_first_and_are_not_alone() -> None:
    assert auto.first(0) == auto.FIRST
    assert [auto.first(n) for n in (1, 2, 3, 10)] == [4, 4, 5, 12]


# --- where it looks -------------------------------------------------------------------------------


def test_nobody_is_judged_before_all_have_been_measured() -> None:
    at = middle(GRID)
    found = next_places([Look(at, early=1.0, open=True), Look(at[::-1], open=True)], around())
    assert found.waits and not found.places


def around(dims: list[Dimension] = GRID) -> Neighbourhood:
    return Neighbourhood(dims)


def test_the_neighbours_of_the_best_come_first_and_are_not_looked_at_twice() -> None:
    best, other = (0.5, 0.5, 1 / 6), (0.1, 1 / 6, 0.5)
    looks = [Look(other, 2.0, open=True), Look(best, 1.0, open=True)]
    found = next_places(looks, around())
    assert "place 1" in found.reason
    assert all(sum(a != b for a, b in zip(p, best, strict=True)) == 1 for p in found.places)
    assert len(found.places) == 6, "two rates, two ranks, two other schedules"
    known = [*looks, *(Look(p, 3.0, open=True) for p in found.places)]
    after = next_places(known, around())
    assert "place 2" in after.reason and not set(after.places) & {k.places for k in known}


@pytest.mark.parametrize(("loss", "is_tried"), [(1.3, False), (1.06, True)])
def test_a_step_that_lost_elsewhere_is_not_tried_again(loss: float, is_tried: bool) -> None:
    """From rank 8 to 32 beside the best, then beside the second."""
    best, second = (0.5, 0.5, 1 / 6), (0.5, 0.5, 0.5)
    looks = [Look(best, 1.0)]
    for places in next_places(looks, around()).places:
        looks.append(Look(places, 1.05 if around().same(places, second) else loss))
    found = next_places(looks, around())
    beside = [p for p in found.places if p[0] == 0.5 and p[2] == pytest.approx(0.5)]
    assert bool(beside) == is_tried


def test_the_best_that_ended_has_all_its_neighbours_looked_at() -> None:
    lost = Look((0.5, 0.5), 9.0, math.inf)
    best = Look((0.1, 0.5), 1.0, 1.0)
    steps = Neighbourhood(GRID[:2])
    looks = [best, lost]
    while found := next_places(looks, steps).places:
        looks += [Look(p, 50.0) for p in found]
    ends = {tuple(round(x, 6) for x in s.of(best.places)) for s in steps.steps(best.places)}
    assert ends <= {tuple(round(x, 6) for x in k.places) for k in looks}


def test_nothing_is_looked_at_around_what_diverged_or_failed() -> None:
    looks = [Look((0.5, 0.5, 0.5), math.inf, math.inf), Look((0.1, 0.5, 0.5))]
    assert next_places(looks, around()) == auto.Next()


def test_ranges_are_looked_at_again_at_half_the_step() -> None:
    steps = Neighbourhood(RANGES)
    best = (0.5, 0.5)
    looks = [Look(best, 1.0, 1.0)]
    coarse = next_places(looks, steps).places
    looks += [Look(p, 5.0, 5.0) for p in coarse]
    seen = [k.places for k in looks]
    while found := next_places(looks, steps).places:
        looks += [Look(p, 5.0, 5.0) for p in found]
    half = [p for p in (k.places for k in looks) if p not in seen and p[1] == 0.5]
    assert any(0 < abs(p[0] - 0.5) < abs(coarse[0][0] - 0.5) for p in half)


def climb(
    loss: Callable[[Places], float], start: list[Places], dims: list[Dimension]
) -> list[Look]:
    """With one slot, where whatever is good at the rung is as good at its end."""
    looks = [Look(p, loss(p), open=True) for p in start]
    for _ in range(200):
        found = next_places(looks, around(dims), keep=2)
        if found.places:
            looks.append(Look(found.places[0], loss(found.places[0]), open=True))
        elif any(k.open for k in looks):
            looks = [Look(k.places, k.early, k.early) for k in looks]
        else:
            return looks
    raise AssertionError("it never ends")


@pytest.mark.parametrize("start", [(0.1, 1 / 6, 1 / 6), (0.9, 5 / 6, 5 / 6), (0.1, 5 / 6, 0.5)])
def test_it_climbs_to_the_best_of_a_surface_with_one_hill(start: Places) -> None:
    best = (0.7, 0.5, 0.5)

    def loss(places: Places) -> float:
        return 1 + sum((a - b) ** 2 for a, b in zip(places, best, strict=True))

    looks = climb(loss, [start], GRID)
    found = min(looks, key=lambda k: k.early or math.inf)
    assert all(math.isclose(a, b) for a, b in zip(found.places, best, strict=True))
    assert len(looks) < 30 < math.prod(len(d.rows) for d in GRID)


# --- what is promising ----------------------------------------------------------------------------

CONSTANT, COSINE = 1 / 6, 0.5
"""Places of two schedules."""


def test_before_anybody_has_ended_the_loss_at_the_rung_is_what_is_expected() -> None:
    looks = [Look((0.5, 0.5, CONSTANT), 1.0, open=True), Look((0.5, 0.5, COSINE), 1.0, math.inf)]
    assert auto.expected((0.1, 0.5, COSINE), 2.0, looks, around()) == 2.0


def test_one_without_a_loss_at_the_rung_that_ended_well_changes_no_expectation() -> None:
    """A metric may be undefined early; the way from there to its end is infinitely long."""
    looks = [Look((0.5, 0.5, CONSTANT), 1.0, 0.5), Look((0.1, 0.5, COSINE), math.inf, 0.4)]
    assert auto.expected((0.1, 0.5, CONSTANT), 2.0, looks, around()) == pytest.approx(1.5)
    assert auto.expected((0.9, 0.5, COSINE), math.inf, looks, around()) == math.inf


@pytest.mark.parametrize("shift", [0.0, -9.0])
def test_what_those_alike_gained_later_is_expected_of_the_others(shift: float) -> None:
    """Also of a metric to maximise, whose losses are below zero."""
    looks = [
        Look((0.5, 0.5, CONSTANT), 2.0 + shift, 1.9 + shift),
        Look((0.5, 0.5, COSINE), 2.1 + shift, 1.0 + shift),
    ]
    constant = auto.expected((0.5, 5 / 6, CONSTANT), 2.2 + shift, looks, around())
    cosine = auto.expected((0.5, 5 / 6, COSINE), 2.3 + shift, looks, around())
    assert cosine < constant
    assert 1.2 < cosine - shift < 1.7, "nearer to what the one that is alike gained"


# --- neighbours -----------------------------------------------------------------------------------


def ends(dims: list[Dimension], at: Places) -> list[object]:
    steps = Neighbourhood(dims).steps(at)
    return [dims[s.dimension].at(s.end)[0] for s in steps]


def test_a_list_has_the_values_beside_it_and_words_all_others() -> None:
    found = ends(GRID, (0.1, 0.5, 1 / 6))
    assert found == [3e-4, 2, 32, "cosine", "linear"]


def test_a_logarithmic_range_has_a_factor_to_either_side() -> None:
    (rate,) = RANGES[:1]
    low, high = ends([rate], (0.5,))
    centre = rate.at(0.5)[0]
    assert low == pytest.approx(centre / math.sqrt(10), rel=1e-4)
    assert high == pytest.approx(centre * math.sqrt(10), rel=1e-4)
    assert ends([rate], (0.0,)) == [pytest.approx(1e-5 * math.sqrt(10), rel=1e-4)]


def test_whole_numbers_step_to_whole_numbers() -> None:
    ranks = dimensions({"lora.rank": AxisRange(low=1, high=64, log=True)}, ())
    place = ranks[0].place({"lora.rank": 8})
    assert place is not None
    assert ends(ranks, (place,)) == [4, 16]


def test_distance_counts_steps_and_other_words() -> None:
    steps = Neighbourhood(GRID)
    assert steps.distance((0.1, 0.5, 1 / 6), (0.5, 5 / 6, 5 / 6)) == pytest.approx(2 + 1 + 1)
    assert steps.distance((0.1, 0.5, 0.5), (0.1, 0.5, 0.5)) == 0


def test_one_value_has_no_neighbour() -> None:
    assert ends(dimensions({"lora.rank": (8,)}, ()), (0.5,)) == []


def test_points_of_a_range_that_nearly_agree_are_the_same() -> None:
    space = Neighbourhood(RANGES)
    assert space.same((0.5, 0.5), (0.51, 0.5)) and not space.same((0.5, 0.5), (0.8, 0.5))
    assert not space.same((0.5, 0.5), (0.5, 5 / 6))
    rows = itertools.pairwise((0.1, 0.3, 0.5))
    assert not any(Neighbourhood(GRID[:1]).same((a,), (b,)) for a, b in rows)
