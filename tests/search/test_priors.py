"""First guesses: on planted optima, on the published grids, and what is said out of range."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from crucible_tinkex.search.learned.bases import BaseFacts, facts
from crucible_tinkex.search.learned.priors import USUAL_RATES, Prior, Question, suggest
from crucible_tinkex.search.learned.records import RANK, RATE, Record, published, way_of

LLAMA = Question("meta-llama/Llama-3.1-8B", 128, 780, ranks=(4, 16, 64))


def planted(
    best: float,
    *,
    base: str = "lab/model-8B",
    rank: int = 16,
    batch_size: int = 128,
    sweep: str = "",
) -> list[Record]:
    """A curve with its optimum at `best`: every factor of 10 from it costs a tenth."""
    return [
        Record(base, rate, rank, batch_size, 780, 1 + 0.1 * abs(math.log10(rate / best)), sweep)
        for rate in USUAL_RATES
    ]


def rates(prior: Prior) -> list[float | int]:
    return [s.values[RATE] for s in prior.suggestions]


@pytest.mark.parametrize(
    ("name", "family", "billions"),
    [
        ("meta-llama/Llama-3.2-1B", "llama", 1),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen", 235),
        ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", "nemotron", 550),
        ("Qwen/Qwen3.5-4B", "qwen", 4),
        ("moonshotai/Kimi-K2.6", "kimi", 1000),
        ("openai/gpt-oss-120b", "gpt-oss", 120),
        ("smollm2-135m-instruct", "smollm", 0.135),
        ("/models/llama_3b/", "llama", 3),
        ("nano", None, 0.001),
        ("nvidia/Nemotron-3-Nano", "nemotron", None),
        ("lab/nanochat-560m", None, 0.56),
        ("mystery", None, None),
    ],
)
def test_a_name_says_family_and_size(name: str, family: str | None, billions: float | None) -> None:
    assert facts(name) == BaseFacts(family, billions)


def test_the_published_grids_are_in_the_package() -> None:
    assert len(published()) > 200 and len({r.base for r in published()}) == 15
    assert all(r.batch_size == 128 and r.steps == 780 for r in published())


def test_the_optimum_of_the_own_sweep_is_the_first_guess() -> None:
    prior = suggest(planted(1e-3), Question("lab/model-8B", 128, 780))
    first = prior.suggestions[0]
    assert first.values == {RATE: 1e-3, RANK: 16} and first.loss == 0 and prior.in_range
    assert "a finished sweep of lab/model-8B in this storage, at rank 16" in first.reason


def test_own_sweeps_of_the_base_are_asked_alone_whatever_else_is_known() -> None:
    """Also at a rate that nobody else would try, and at the rank that was best there."""
    own = [
        Record(LLAMA.base, rate, rank, 64, 400, 1 + abs(math.log10(rate / 7.8e-3)) + rank / 1e3)
        for rate in (1e-3, 7.8e-3, 2e-2)
        for rank in (4, 16)
    ]
    prior = suggest([*published(), *own], replace(LLAMA, batch_size=64, steps=400))
    assert prior.suggestions[0].values == {RATE: 7.8e-3, RANK: 4} and prior.in_range
    assert rates(prior)[1] == 3e-3, "1e-2 would be nearly the same again"
    assert "in this storage" in prior.suggestions[0].reason


def test_one_own_sweep_that_varied_more_than_the_rate_is_counted_once() -> None:
    own = [
        r
        for schedule in ("constant", "cosine")
        for r in planted(1e-3, base=LLAMA.base, sweep=f'a1 {{"optimizer.schedule":"{schedule}"}}')
    ]
    assert "the best of a finished sweep of" in suggest(own, LLAMA).suggestions[0].reason
    more = [*own, *planted(1e-3, base=LLAMA.base, sweep="b2 {}")]
    assert "the best of 2 finished sweeps of" in suggest(more, LLAMA).suggestions[0].reason


@pytest.mark.parametrize(
    "other", [{"batch_size": 8}, {"steps": 40}, {"way": "train.loss = mine:loss"}]
)
def test_own_sweeps_that_are_unlike_do_not_decide_alone(other: dict[str, Any]) -> None:
    own = [replace(r, **other) for r in planted(3e-2, base=LLAMA.base)]
    prior = suggest([*published(), *own], LLAMA)
    assert prior.suggestions[0].values[RATE] < 3e-3
    assert "recorded curves" in prior.suggestions[0].reason


def test_seeds_of_an_own_sweep_are_averaged_before_the_best_rank_counts() -> None:
    """3e-3 was lucky once."""
    own = planted(1e-3, base=LLAMA.base)
    lucky = [
        Record(LLAMA.base, 3e-3, rank, 128, 780, metric)
        for rank, metric in ((4, 0.9), (4, 1.3), (64, 1.2))
    ]
    first = suggest([*own, *lucky], LLAMA).suggestions[0]
    assert first.values == {RATE: 1e-3, RANK: 16}


def test_rates_that_a_rule_stopped_say_where_the_own_sweep_was_best() -> None:
    """Where one rate alone went on to the end; elsewhere they say nothing."""
    found = planted(1e-3, base=LLAMA.base)
    own = [replace(r, outdone=r.learning_rate != 1e-3) for r in found]
    prior = suggest([*published(), *own], LLAMA)
    assert prior.suggestions[0].values == {RATE: 1e-3, RANK: 16} and prior.in_range
    assert "in this storage" in prior.suggestions[0].reason
    lost = [replace(r, metric=9.0) if r.outdone else r for r in own]
    assert rates(suggest(lost, LLAMA)) == [1e-3], "no second guess is better than another"
    other = [replace(r, base="lab/model-8B") for r in own]
    assert suggest([*published(), *other], LLAMA) == suggest(published(), LLAMA)
    assert not suggest(other, LLAMA).suggestions


def test_a_toy_and_a_real_model_are_never_asked_about_each_other() -> None:
    toy, real = planted(1e-2, base="nano"), "smollm2-135m-instruct"
    of_toy, of_real = Question("nano", 128, 780), Question(real, 128, 780)
    assert suggest([*published(), *toy], of_real) == suggest(published(), of_real)
    assert rates(suggest([*published(), *toy], of_toy))[0] == 1e-2
    unknown, alone = suggest(published(), of_toy), suggest(toy, of_real)
    assert not unknown.suggestions and "'nano' is a toy" in unknown.doubts[0]
    assert not alone.suggestions and "only sweeps of toys" in alone.doubts[0]


def test_another_way_to_learn_is_said() -> None:
    prior = suggest(published(), replace(LLAMA, way=way_of({"train.loss": "mine:loss"})))
    assert prior.suggestions and "learns with train.loss = mine:loss" in prior.doubts[0]
    assert way_of({"train.loss": "cross_entropy", "lora.train_mlp": True}) == ""


def test_the_second_guess_is_where_the_first_one_is_wrong() -> None:
    """Not the neighbour of the first, although that is second best on most curves."""
    records = planted(1e-3, sweep="a") + planted(1e-3, sweep="b") + planted(1e-5, sweep="c")
    assert rates(suggest(records, Question("lab/model-8B", 128, 780), count=2)) == [1e-3, 1e-5]


def test_the_own_base_counts_more_than_another_and_its_family_more_than_a_stranger() -> None:
    records = planted(1e-3, base="lab/other-8B", sweep="a") + planted(1e-4, sweep="b")
    assert rates(suggest(records, Question("lab/model-8B", 128, 780), count=1)) == [1e-4]
    llama, qwen = planted(1e-3, base="x/llama-8b"), planted(1e-4, base="x/qwen-8b")
    assert rates(suggest(llama + qwen, Question("y/llama-8b", 128, 780), count=1)) == [1e-3]
    assert rates(suggest(llama + qwen, Question("y/qwen-8b", 128, 780), count=1)) == [1e-4]


def test_the_rate_goes_with_the_root_of_the_batch_size() -> None:
    records = planted(1e-3, batch_size=100)
    asked = Question("lab/model-8B", 1, 780, rates=(1e-4, 1e-3, 1e-2))
    assert rates(suggest(records, asked, count=1)) == [1e-4]


@pytest.mark.parametrize(("best", "rank"), [(64, 64), (16, 16), (1, 4)])
def test_the_rank_is_the_largest_on_offer_unless_a_smaller_one_was_better(
    best: int, rank: int
) -> None:
    """`best` of 1, 16 and 64 where they were tried; the same share of the largest is asked for."""
    found = [
        replace(r, rank=r_, metric=r.metric + abs(math.log2(r_ / best)))
        for r_ in (1, 16, 64)
        for r in planted(1e-3)
    ]
    asked = Question("lab/model-8B", 128, 780, ranks=(4, 16, 64))
    assert suggest(found, asked).suggestions[0].values[RANK] == rank


def test_without_ranks_on_offer_it_is_one_of_those_recorded() -> None:
    prior = suggest(published(), replace(LLAMA, ranks=()))
    assert prior.suggestions[0].values[RANK] in {64, 128}


def test_only_rates_on_offer_are_guessed() -> None:
    assert set(rates(suggest(published(), replace(LLAMA, rates=(1e-4, 2e-4)), count=5))) == {
        1e-4,
        2e-4,
    }


def test_a_rate_that_few_have_measured_is_not_guessed() -> None:
    """3e-3 was run for a few bases only, where it looked best among few."""
    short = [r for r in planted(1e-3) if r.learning_rate <= 1e-3]
    records = [replace(r, sweep=str(i)) for i in range(3) for r in short] + planted(1e-2)
    assert rates(suggest(records, Question("lab/model-8B", 128, 780), count=1)) == [1e-3]


def test_repetitions_are_averaged_and_what_diverged_counts_as_bad() -> None:
    noisy = [replace(r, metric=r.metric + d) for r in planted(1e-3) for d in (-0.05, 0.05)]
    wild = [
        replace(r, metric=math.inf if r.learning_rate > 1e-3 else r.metric)
        for r in planted(3e-3, sweep="w")
    ]
    assert rates(suggest(noisy + wild, Question("lab/model-8B", 128, 780), count=1)) == [1e-3]


@pytest.mark.parametrize("records", [[], planted(1e-3)[:1], [replace(planted(1)[0], metric=0.0)]])
def test_records_that_say_nothing_give_no_guess_and_the_reason(records: list[Record]) -> None:
    prior = suggest(records, LLAMA)
    assert not prior.suggestions and "more than one learning rate" in prior.doubts[0]


def test_rates_that_nobody_measured_give_no_guess_and_the_reason() -> None:
    prior = suggest(published(), replace(LLAMA, rates=(10.0,)))
    assert not prior.suggestions and "on offer" in prior.doubts[0]


@pytest.mark.parametrize(
    ("question", "doubts"),
    [
        (LLAMA, []),
        (replace(LLAMA, base="meta-llama/Llama-9-7B"), []),
        (replace(LLAMA, base="google/gemma-3-4b"), ["no recorded sweep is of the family 'gemma'"]),
        (replace(LLAMA, base="mystery"), ["says no family", "says no size"]),
        (replace(LLAMA, base="x/llama-11m"), ["size 0.011 is far from those recorded"]),
        (replace(LLAMA, ranks=(1024,)), ["rank 1024 is far from those recorded (4 to 128)"]),
        (replace(LLAMA, batch_size=8), ["batch size 8 is far from those recorded (128 rows)"]),
        (replace(LLAMA, steps=64), ["length 64 is far from those recorded (780 steps)"]),
    ],
)
def test_what_is_out_of_range_is_said(question: Question, doubts: list[str]) -> None:
    prior = suggest(published(), question)
    assert prior.suggestions, "out of range is said, and answered nevertheless"
    assert len(prior.doubts) == len(doubts) and prior.in_range == (not doubts)
    for said, expected in zip(prior.doubts, doubts, strict=True):
        assert expected in said


def test_left_out_bases_are_guessed_better_than_by_the_published_rules() -> None:
    from benchmarks.priors import formula, grids, learned, rule

    records = published()
    judged = grids(records)
    ours = [grid.regret(learned(grid, records)[:1]) for grid in judged]
    first_of_rule = [grid.regret(rule(grid, records)[:1]) for grid in judged]
    covered = [grid for grid in judged if formula(grid, records)]
    assert sum(ours) < sum(first_of_rule) / 5
    assert max(ours) < 0.5 < max(grid.regret(formula(grid, records)) for grid in covered)
    both = [grid.regret(learned(grid, records)) for grid in judged]
    assert sum(both) / len(both) < 0.005
