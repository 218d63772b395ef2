"""`confirm = "auto"`: the leaders run fresh seeds until it is known who is best, and no longer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_sweeps import Bench, make_experiment
from operations import lines_of
from sweep_states import Journal

from benchmarks.played import PlayedSweep
from crucible_tinkex.config import BudgetSection, parse_budget
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import DONE, FAILED, Spent, TrialRecord
from crucible_tinkex.sweep.deciding.budget import Budget, more_budget
from crucible_tinkex.sweep.results.conclusion import conclusion
from crucible_tinkex.sweep.results.leaderboard import best, configurations

AUTO = {"space": {"lora.rank": [1, 2, 3, 4]}, "seeds": [0, 1], "confirm": "auto"}
Loss = Callable[[TrialRecord], float]


def noisy(means: dict[int, float], sd: float, *, shared: float = 0.0, first: int = 0) -> Loss:
    """The same for a configuration and a seed whenever it is asked."""

    def loss(trial: TrialRecord) -> float:
        rank = int(trial.values["lora.rank"])
        own = np.random.default_rng([trial.seed, rank + first]).normal(0, sd)
        return means[rank] + own + np.random.default_rng(trial.seed).normal(0, 1) * shared

    return loss


def swept(loss: Loss, *, slots: int = 3, fails: Loss | None = None, **search: object) -> Journal:
    journal = Journal(search={**AUTO, **search})
    while journal.state.ended is None:
        journal.decide(slots=slots)
        for trial_id in journal.pending[:slots]:
            trial = journal.state.trials[trial_id]
            if fails and fails(trial):
                journal.finish(trial_id, FAILED, "bad")
            else:
                journal.train(trial_id, loss(trial))
        assert len(journal.state.trials) < 200, "it never ends"
    return journal


def spent(journal: Journal, trial_id: str, **used: Any) -> None:
    """By a new attempt."""
    trial = journal.state.trials[trial_id]
    journal._tell("attempt", trial_id=trial_id, attempt=trial.attempt + 1)
    journal._tell("spent", trial_id=trial_id, spent=vars(Spent(**used)))


def fresh(journal: Journal) -> dict[int, list[int]]:
    seeds: dict[int, list[int]] = {}
    for trial in journal.state.trials.values():
        if trial.phase == "confirm":
            seeds.setdefault(int(trial.values["lora.rank"]), []).append(trial.seed)
    return {rank: sorted(found) for rank, found in seeds.items()}


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_a_clear_winner_takes_few_seeds(slots: int) -> None:
    journal = swept(noisy({1: 2.0, 2: 1.0, 3: 1.5, 4: 9.0}, 0.01), slots=slots)
    seeds = fresh(journal)
    assert 4 not in seeds, "no leader"
    assert all(found[:3] == [10_000, 10_001, 10_002] for found in seeds.values())
    assert all(len(found) <= 7 for found in seeds.values())
    found = conclusion(journal.state)
    assert found.verdict.startswith("winner: rank = 2, better than all 2 others")
    assert found.value and "took no part in the choice" in found.value.about
    assert best(journal.state).values == {"lora.rank": 2}  # type: ignore[union-attr]
    assert journal.state.ended == "confirmation: none is better than rank = 2 by more than 0.002"


def test_a_confirmation_that_is_not_over_ranks_as_soon_as_every_leader_has_two() -> None:
    loss = noisy({1: 2.0, 2: 1.0, 3: 1.1, 4: 9.0}, 0.2)
    journal = Journal(search={**AUTO, "confirm_top": 2})
    phases = []
    while journal.state.ended is None:
        journal.decide(slots=3)
        for trial_id in journal.pending[:1]:
            journal.train(trial_id, loss(journal.state.trials[trial_id]))
        trials = [t for t in journal.state.trials.values() if t.phase == "confirm"]
        done = [t.values["lora.rank"] for t in trials if t.state == DONE]
        if len(done) < len(trials):
            counts = all(done.count(leader) >= 2 for leader in (2, 3))
            said = conclusion(journal.state).notes
            told = (
                f"the confirmation is not over: {len(done)} of its {len(trials)} trials have ended"
            )
            rank = "; the search's seeds rank until every leader has 2 fresh ones"
            assert said[0] == (told if counts else told + rank)
            assert counts == any("judged on fresh seeds" in note for note in said)
            phases.append(best(journal.state).phase)  # type: ignore[union-attr]
            assert phases[-1] == ("confirm" if counts else "search")
    assert set(phases) == {"search", "confirm"}
    assert not any("not over" in note for note in conclusion(journal.state).notes)


def test_equal_ones_are_not_separable() -> None:
    equal = dict.fromkeys((1, 2, 3, 4), 1.0)
    journal = swept(noisy(equal, 0.001, shared=0.1))
    found = conclusion(journal.state)
    assert found.kind == "tie" and len(found.not_separable) == 3
    assert found.take in found.not_separable
    assert max(map(len, fresh(journal).values())) <= 20


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_sweep_that_grew_ends_when_its_verdict_is_given(seeds: list[int]) -> None:
    """Those that led before it grew are judged by the verdict, so they get seeds, too."""
    for number in range(0, 60, 6):
        loss = noisy({1: 1.0, 2: 1.0, 3: 1.0, 4: 0.6, 5: 0.4}, 0.4, first=number)
        search = {"seeds": seeds, "indifference": 0.4, "confirm": "auto", "confirm_top": 2}
        asked = [
            make_experiment(
                search={**search, "space": {"lora.rank": [*range(1, most)]}, "reference": False}
            )
            for most in (4, 5, 6)
        ]
        sweep = PlayedSweep(asked[0], lambda trial, _, loss=loss: loss(trial), slots=100)
        for more in (None, *asked[1:]):
            if more is not None:
                sweep.amend(more)
            assert list(sweep.run())
            is_settled = "none is better" in str(sweep.state.ended)
            assert is_settled == (conclusion(sweep.state).kind != "open")


def test_what_cannot_be_told_ends_at_the_cap() -> None:
    equal = dict.fromkeys((1, 2, 3, 4), 1.0)
    journal = swept(noisy(equal, 0.5), confirm_max_seeds=5)
    assert journal.state.ended and "open after 5 seeds" in journal.state.ended
    assert sorted(map(len, fresh(journal).values())) == [5, 5, 7], "two more for the leader's value"
    found = conclusion(journal.state)
    assert found.kind == "open" and "3 of 3 are not separable" in found.verdict


def test_the_zone_is_the_sweeps() -> None:
    loss = noisy({1: 1.0, 2: 1.02, 3: 1.04, 4: 9.0}, 0.05)
    few = swept(loss, indifference=1.0)
    assert conclusion(few.state).terms.zone == 1.0
    assert sum(map(len, fresh(few).values())) < sum(map(len, fresh(swept(loss)).values()))
    with pytest.raises(ConfigError, match="indifference"):
        Journal(search={**AUTO, "indifference": -1.0})
    with pytest.raises(ConfigError, match="confirm"):
        Journal(search={**AUTO, "confirm": "yes"})


def test_seeds_that_the_search_has_used_are_not_fresh() -> None:
    journal = swept(noisy({1: 2.0, 2: 1.0, 3: 1.5, 4: 9.0}, 0.01), seeds=[0, 20_000])
    assert min(min(found) for found in fresh(journal).values()) == 20_001


@pytest.mark.parametrize(
    "fails",
    [
        lambda t: t.phase == "confirm" and t.values["lora.rank"] == 1,
        lambda t: t.seed > 10_002 and t.values["lora.rank"] == 1,
        lambda t: t.phase == "confirm",
        lambda t: t.seed == 10_001,
        lambda t: t.phase == "search",
    ],
)
def test_it_ends_where_confirmations_fail(fails: Loss) -> None:
    journal = swept(noisy(dict.fromkeys((1, 2, 3, 4), 1.0), 0.5), fails=fails, confirm_max_seeds=4)
    assert sum(map(len, fresh(journal).values())) <= 3 * (4 + 2) + 2
    conclusion(journal.state)


@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_it_ends_where_the_numbers_say_nothing(value: float) -> None:
    journal = swept(lambda trial: value if trial.phase == "confirm" else 1.0)
    assert sum(map(len, fresh(journal).values())) <= 9
    assert conclusion(journal.state).kind in ("open", "nothing")


def test_one_configuration_is_not_confirmed() -> None:
    assert fresh(swept(noisy({1: 1.0}, 0.1), space={"lora.rank": [1]})) == {}


KEEPS_ONE = {"seeds": [0], "confirm": 2, "confirm_top": 2} | {
    "stopping": {"rule": "topk", "first_rung": 1, "keep": 1}
}
MEANS = {1: 2.0, 2: 1.0, 3: 1.5, 4: 9.0}


@pytest.mark.parametrize("confirm", [2, "auto"])
def test_nobody_is_confirmed_alone_the_next_is_trained_to_its_end(confirm: object) -> None:
    journal = swept(noisy(MEANS, 0.01), **{**KEEPS_ONE, "confirm": confirm})
    seeds = fresh(journal)
    assert seeds.keys() == {2, 3} and all(len(found) >= 2 for found in seeds.values())
    (rival,) = (
        t for t in journal.state.trials.values() if t.values["lora.rank"] == 3 and not t.seed
    )
    assert [d.kind for d in rival.decisions][-2:] == ["stop", "advance"]
    assert "confirmed alone" in rival.decisions[-1].reason
    assert conclusion(journal.state).kind != "nothing to compare"


def test_the_winner_alone_is_confirmed_where_that_is_asked_for() -> None:
    journal = swept(noisy(MEANS, 0.01), **{**KEEPS_ONE, "confirm_top": 1})
    assert {rank: len(found) for rank, found in fresh(journal).items()} == {2: 2}


def test_a_fixed_number_of_seeds_is_not_spent_on_the_only_configuration() -> None:
    journal = swept(noisy({4: 1.0}, 0.1), space={"lora.rank": [4]}, confirm=2)
    assert fresh(journal) == {}
    assert journal.state.ended and "of it alone say nothing" in journal.state.ended


@pytest.mark.parametrize(
    ("caps", "keeps", "begins"),
    [
        ({"trials": 5}, 4, False),  # the four of the search, and one more
        ({"trials": 6}, 4, True),
        ({"tokens": 5999}, 4, False),  # 1000 each
        ({"tokens": 6000}, 4, True),
        ({"hours": 5999 / 3600}, 4, False),
        ({"tokens": 3900}, 1, False),  # and the rival's end before
        ({"tokens": 4900}, 1, True),
    ],
)
def test_what_does_not_pay_for_two_leaders_is_not_spent_on_one(
    caps: dict[str, Any], keeps: int, begins: bool
) -> None:
    """1000 tokens and seconds a trial, one trial after the other."""
    stopping = {"rule": "topk", "first_rung": 1, "keep": keeps}
    journal = Journal(search={**AUTO, **KEEPS_ONE, "stopping": stopping})
    journal.policy.budget = Budget(BudgetSection(**caps))
    journal.fresh_policy = lambda: journal.policy  # type: ignore[method-assign]
    while journal.state.ended is None and not fresh(journal):
        decided = journal.policy.decide(journal.state, slots=1, wall_s=journal.state.spent.seconds)
        journal.write(decided)
        for trial_id in journal.pending[:1]:
            trial = journal.state.trials[trial_id]
            used = 1000 * (trial.target - trial.step) // trial.total_steps
            spent(journal, trial_id, train_tokens=used, seconds=float(used))
            journal.train(trial_id, MEANS[trial.values["lora.rank"]])
    assert bool(fresh(journal)) is begins
    if not begins:
        (key,) = caps
        assert journal.state.ended_by == "budget" and journal.state.ended
        assert journal.state.ended.startswith(f"budget.{key}: ")
        assert "does not pay for another fresh seed" in journal.state.ended
        assert parse_budget(more_budget(journal.state.ended, len(journal.state.trials)))


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("pays", [2.0, 3.9, 4.0, 5.9])
def test_a_seed_is_begun_for_all_leaders_or_for_none(slots: int, pays: float) -> None:
    """So `auto` ends with whole pairs where a budget ends it, not with four halves."""
    journal = Journal(search={**AUTO, **KEEPS_ONE, "confirm": "auto", "stopping": {}})
    journal.policy.budget = Budget(BudgetSection(tokens=round((4 + pays) * 1000)))
    journal.fresh_policy = lambda: journal.policy  # type: ignore[method-assign]
    while journal.state.ended is None:
        journal.decide(slots=slots)
        for trial_id in journal.pending[:slots]:
            spent(journal, trial_id, train_tokens=1000)
            loss = noisy({1: 9.0, 2: 1.0, 3: 1.01, 4: 9.0}, 0.1)
            journal.train(trial_id, loss(journal.state.trials[trial_id]))
    seeds = fresh(journal)
    assert seeds == dict.fromkeys((2, 3), [10_000, 10_001][: int(pays) // 2])
    assert all(t.state == "done" for t in journal.state.trials.values())
    assert journal.state.ended_by == "budget"


@pytest.mark.parametrize("slots", [1, 4])
def test_the_first_seed_is_begun_for_two_of_three_leaders(slots: int) -> None:
    journal = Journal(search={**AUTO, **KEEPS_ONE, "confirm_top": 3, "stopping": {}})
    journal.policy.budget = Budget(BudgetSection(trials=6))
    journal.fresh_policy = lambda: journal.policy  # type: ignore[method-assign]
    while journal.state.ended is None:
        journal.decide(slots=slots)
        for trial_id in journal.pending[:slots]:
            journal.train(trial_id, MEANS[journal.state.trials[trial_id].values["lora.rank"]])
    assert fresh(journal) == {2: [10_000], 3: [10_000]}


def test_deciding_costs_little_beside_a_large_search() -> None:
    """A configuration costs the same beside ten times as many; it took seconds."""

    def lines(configurations: int) -> float:
        space = {"lora.rank": list(range(1, configurations + 1))}
        journal = Journal(search={**AUTO, "space": space})
        while not fresh(journal):
            journal.decide(slots=1000)
            for trial_id in journal.pending:
                trial = journal.state.trials[trial_id]
                journal.train(trial_id, trial.values["lora.rank"] + trial.seed / 10)
        journal.policy.decide(journal.state, slots=1000)
        counted = lines_of(lambda: journal.policy.decide(journal.state, slots=1000))
        return counted.total() / configurations

    few, many = lines(50), lines(500)
    assert many < 1.1 * few < 200


def test_a_whole_sweep_confirms_by_itself(tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": [1e-5, 1e-3, 1e-2]}
    search = {"space": space, "seeds": [0, 1], "confirm": "auto", "reference": False}
    bench = Bench(tmp_path, search=search)
    state = bench.run()
    assert state.ended and state.ended.startswith("confirmation: ")
    confirmed = [t for t in state.trials.values() if t.phase == "confirm"]
    assert confirmed and all(t.seed >= 10_000 for t in confirmed)
    again = Bench(tmp_path, search=search)
    assert len(again.run().trials) == len(state.trials), "a sweep that is resumed asks for no more"


def test_who_has_met_easier_seeds_is_not_ranked_by_them() -> None:
    """rank 2 is worse by .1 with every seed, and has run the easy ones alone."""
    easy = {10_000: 0.0, 10_001: 0.0, 10_002: 1.0, 10_003: 1.0}
    journal = Journal(search={"space": {"lora.rank": [1, 2]}, "confirm": "auto"})
    for _ in range(9):
        journal.decide(slots=9)
        for trial_id in journal.pending:
            trial = journal.state.trials[trial_id]
            rank = int(trial.values["lora.rank"])
            if rank == 2 and trial.seed > 10_001:
                journal.finish(trial_id, FAILED, "bad")
            else:
                journal.train(trial_id, 1 + rank / 10 + easy.get(trial.seed, 1.0))
    first, second = [c for c in configurations(journal.state) if c.phase == "confirm"]
    assert first.mean and second.mean and first.mean > second.mean
    assert first.values == {"lora.rank": 1}
