"""What `tune` chooses from lengths, rows and budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from crucible_tinkex.datasets import LengthStatistics
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.tuning.choices import Facts, choose


def facts(rows: int = 1000, **changed: Any) -> Facts:
    lengths = {"p50": 40, "p90": 80, "p99": 100, "longest": 120, "learnt": 5 * rows}
    lengths |= {"tokens": 50 * rows, "truncated": 0, "dropped": 0, "padding": 0.1}
    lengths |= {key: changed.pop(key) for key in list(changed) if key in lengths}
    given = {"format": "text", "has_eval": False, "embedded": True, **changed}
    return Facts(LengthStatistics(rows=rows, **lengths), **given)


@pytest.mark.parametrize("rows", [5, 12, 49, 50, 249, 250, 5000, 1_000_000])
@pytest.mark.parametrize("embedded", [True, False])
def test_every_size_has_rows_on_both_sides_and_steps(rows: int, embedded: bool) -> None:
    found = choose(facts(rows, embedded=embedded), {})
    held_out = found.settings.get("data.eval_rows") or rows * found.settings["data.eval_fraction"]
    assert 1 <= held_out <= min(500, rows / 2)
    batch = found.settings["train.batch_size"]
    assert batch & (batch - 1) == 0 and 1 <= batch <= rows
    assert 1 <= found.steps <= (200 if embedded else 1000)
    assert found.steps * batch <= 12 * rows
    assert found.trials is None


def test_an_eval_file_leaves_the_training_rows_alone() -> None:
    settings = choose(facts(has_eval=True), {}).settings
    assert not {"data.eval_rows", "data.eval_fraction"} & settings.keys()


@pytest.mark.parametrize(
    ("longest", "p99", "context", "length"),
    [(120, 100, None, 120), (4000, 100, None, 100), (900, 800, None, 512), (300, 290, 256, 256)],
)
def test_length_follows_the_rows_and_what_the_base_takes(
    longest: int, p99: int, context: int | None, length: int
) -> None:
    found = choose(facts(longest=longest, p99=p99, context=context), {})
    assert found.settings["train.max_length"] == length
    assert found.settings["data.too_long"] == "truncate"
    assert any("cut at" in line for line in found.reasons) == (length < longest)


def test_answers_are_generated_where_they_are_short() -> None:
    assert choose(facts(), {}).settings["evaluation.generate"] is True
    assert choose(facts(learnt=200_000), {}).settings["evaluation.generate"] is False


def test_the_best_are_confirmed_until_told_where_the_budget_pays_for_it() -> None:
    keys = ("search.confirm", "search.confirm_top", "search.confirm_max_seeds")
    free = choose(facts(), {}).settings
    assert [free[key] for key in keys] == ["auto", 2, 8]
    some = choose(facts(), {"budget.steps": 3000})
    assert [some.settings[key] for key in keys] == ["auto", 2, 4]
    assert some.trials and 2 * 4 + 2 <= some.trials / 2 < 2 * 5 + 2, "half of what it pays for"
    tight = choose(facts(), {"budget.steps": 300})
    assert not tight.settings.keys() & set(keys), "too few seeds to tell: a fixed number"
    assert not any("until the best is told" in line for line in tight.reasons)


def test_an_unknown_price_is_said_where_it_costs() -> None:
    assert not any("price" in line for line in choose(facts(), {}).reasons)
    hosted = choose(facts(embedded=False), {})
    assert any("no price is known" in line for line in hosted.reasons)
    priced = choose(facts(embedded=False, dollars_per_token=1.0), {})
    assert not any("price" in line for line in priced.reasons)


def test_a_budget_shortens_trials_and_says_how_many_it_pays_for() -> None:
    free, tight = choose(facts(), {}), choose(facts(), {"budget.steps": 300})
    assert tight.steps < free.steps
    assert tight.trials is not None and tight.trials * tight.steps <= 300
    assert tight.trials >= 4


@pytest.mark.parametrize(
    ("known", "budget"),
    [
        ({"tokens_per_s": 1000.0}, {"budget.hours": 0.1}),
        ({"dollars_per_token": 1e-6}, {"budget.dollars": 0.36}),
        ({}, {"budget.tokens": 360_000}),
    ],
)
def test_budgets_in_other_units_are_converted(
    known: dict[str, float], budget: dict[str, float]
) -> None:
    found = choose(facts(**known), budget)
    assert found.trials is not None
    used = found.trials * found.steps * found.settings["train.batch_size"] * 50
    assert used == pytest.approx(0.7 * 360_000)


def test_what_cannot_be_converted_is_said() -> None:
    found = choose(facts(), {"budget.hours": 1.0})
    assert found.trials is None
    assert any("not known" in line for line in found.reasons)


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 rows are too few"):
        choose(facts(4), {})
    with pytest.raises(ConfigError, match="not pay for a single step"):
        choose(facts(), {"budget.tokens": 10})


@pytest.mark.parametrize("cap", [2, 3, 5, 10, 20, 40, 200])
def test_a_budget_of_trials_is_divided_between_search_and_confirmation(cap: int) -> None:
    found = choose(facts(), {"budget.trials": cap})
    search = found.settings["search.trials"]
    seeds = found.settings.get("search.confirm_max_seeds")
    confirms = cap >= 5
    assert search == math.ceil((cap - 1) / 2 if confirms else cap - 1) and found.trials == cap - 1
    assert ("search.confirm" in found.settings) <= confirms
    assert seeds is None or search + 2 * seeds + 2 <= cap - 1
    assert not any("not known" in line for line in found.reasons)


def test_what_a_budget_of_steps_is_for_adds_up() -> None:
    reasons = choose(facts(240), {"budget.steps": 40}).reasons
    assert "about 28 steps in all are planned, 70% of what the budget pays for" in reasons
    assert "about 48 of 240 rows are held out, as no --eval is given" in reasons


def test_one_trial_is_too_few() -> None:
    with pytest.raises(ConfigError, match="untrained base alone"):
        choose(facts(), {"budget.trials": 1})


def test_dollars_on_this_machine_are_no_cap() -> None:
    found = choose(facts(), {"budget.dollars": 5.0})
    assert any("costs nothing" in line for line in found.reasons) and found.trials is None
