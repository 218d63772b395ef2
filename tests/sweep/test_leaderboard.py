"""The ranking: seeds together, only what is complete wins, and what the exit code says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from sweep_states import Journal

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, FAILED, LOST, STOPPED, Decision, SweepState
from crucible_tinkex.sweep.results.leaderboard import (
    best,
    configurations,
    exit_code,
    places,
    ranked,
    tied,
    trials_left,
)

ASSETS = Path(__file__).parent.parent / "assets"


def swept(*losses: float | str | None, seeds: tuple[int, ...] = (0,), **search: Any) -> Journal:
    """A configuration for every so many losses as there are seeds; a word is a state, None runs."""
    ranks = list(range(1, 1 + len(losses) // len(seeds)))
    asked = {"space": {"lora.rank": ranks}, "seeds": list(seeds), **search}
    journal = Journal(search=asked)
    journal.decide(slots=99)
    for trial_id, loss in zip(list(journal.state.trials), losses, strict=True):
        if isinstance(loss, str):
            journal.finish(trial_id, loss, "because")
        elif loss is not None:
            journal.train(trial_id, loss)
    return journal


def order(state: SweepState) -> list[int]:
    return [c.values["lora.rank"] for c in configurations(state)]


def test_the_lowest_loss_wins() -> None:
    state = swept(2.0, 1.0, 3.0).state
    assert order(state) == [2, 1, 3]
    winner = best(state)
    assert winner and (winner.mean, winner.spread) == (1.0, None)


def test_seeds_are_averaged() -> None:
    state = swept(1.0, 9.0, 4.0, 4.0, seeds=(0, 1)).state
    assert order(state) == [2, 1]
    winner = best(state)
    assert winner and (winner.mean, winner.spread) == (4.0, 0.0)
    assert [t.seed for t in ranked(state)] == [0, 1, 0, 1]


@pytest.mark.parametrize("state", [FAILED, LOST, STOPPED, None])
def test_a_configuration_that_misses_a_seed_never_wins(state: str | None) -> None:
    found = swept(1.0, state, 4.0, 5.0, seeds=(0, 1)).state
    assert order(found) == [2, 1]
    assert configurations(found)[1].missing_seeds == [1]
    assert best(found).values == {"lora.rank": 2}  # type: ignore[union-attr]


def test_a_seed_that_was_added_makes_all_incomplete_until_it_is_done() -> None:
    journal = swept(1.0, 2.0)
    experiment = {**journal.state.meta["experiment"]}
    experiment["search"] = {**experiment["search"], "seeds": [0, 7]}
    journal._tell("amended", meta={"experiment": experiment}, changed=["search.seeds"])
    assert best(journal.state) is None
    assert [c.missing_seeds for c in configurations(journal.state)] == [[7], [7]]


def test_a_failed_trial_is_never_first() -> None:
    journal = swept(2.0, FAILED, 3.0)
    assert order(journal.state) == [1, 3, 2]
    all_failed = swept(FAILED, FAILED).state
    assert best(all_failed) is None and exit_code(all_failed) == 130


def test_what_failed_after_it_was_measured_does_not_compete() -> None:
    journal = swept(2.0, None)
    trial_id = journal.pending[0]
    journal._tell("attempt", trial_id=trial_id, attempt=1)
    journal._tell("result", trial_id=trial_id, step=4, metrics={"eval/nll": 0.1})
    journal.finish(trial_id, FAILED, "bad")
    assert order(journal.state) == [1, 2]


def test_nothing_that_is_not_a_number_wins() -> None:
    assert order(swept(math.nan, 2.0).state) == [2, 1]


def test_equal_means_are_tied() -> None:
    state = swept(1.0, 3.0, 2.0, 2.0, 5.0, 5.0, seeds=(0, 1)).state
    winner = best(state)
    assert winner and winner.values == {"lora.rank": 1}, "the one that was asked for first"
    assert [c.values for c in tied(state, winner)] == [{"lora.rank": 2}]


def test_the_direction_is_the_catalogues_unless_the_experiment_says() -> None:
    journal = swept(1.0, 2.0, direction="max")
    assert order(journal.state) == [2, 1]
    journal = Journal(
        search={"space": {"lora.rank": [1, 2]}, "metric": "eval/accuracy"},
        evaluation={"generate": True},
    )
    journal.decide()
    low, high = journal.pending
    journal.train(low, 1.0, **{"eval/accuracy": 0.1})
    journal.train(high, 2.0, **{"eval/accuracy": 0.9})
    assert order(journal.state) == [2, 1]


def test_the_best_step_is_one_that_can_be_had() -> None:
    """Step 4 is better, but only step 2 and the last were saved."""
    journal = swept(None, at="best")
    (trial_id,) = journal.pending
    journal._tell("attempt", trial_id=trial_id, attempt=1)
    for step, loss in ((2, 3.0), (4, 1.0), (8, 5.0)):
        journal._tell("result", trial_id=trial_id, step=step, metrics={"eval/nll": loss})
    journal.finish(trial_id, DONE)
    assert best(journal.state) is None, "nothing was saved"
    journal.save(trial_id, 8)
    assert best(journal.state).mean == 5.0  # type: ignore[union-attr]
    journal.save(trial_id, 2)
    assert best(journal.state).mean == 3.0  # type: ignore[union-attr]


def test_the_base_is_listed_and_never_wins() -> None:
    journal = Journal(search={"space": {"lora.rank": [1]}, "reference": True})
    journal.decide()
    base, tuned = journal.state.trials
    journal._tell("attempt", trial_id=base, attempt=1)
    journal._tell("result", trial_id=base, step=0, metrics={"eval/nll": 0.5})
    journal.finish(base, DONE)
    journal.train(tuned, 1.0)
    assert [c.reference for c in configurations(journal.state)] == [True, False]
    assert best(journal.state).values == {"lora.rank": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("states", "code"),
    [([1.0, 2.0], 0), ([1.0, STOPPED], 0), ([1.0, FAILED], 1), ([LOST, LOST], 1), ([1.0], 0)],
)
def test_exit_codes_of_what_has_ended(states: list[Any], code: int) -> None:
    journal = swept(*states)
    assert exit_code(journal.state) == 130, "nobody said that this is all"
    journal.decide()
    assert exit_code(journal.state) == code


def test_something_left_to_do_is_an_interruption_whatever_else() -> None:
    journal = swept(FAILED, None)
    assert exit_code(journal.state) == 130


def test_what_is_left_to_train_counts_more_than_was_planned() -> None:
    journal = confirming(1.0, 2.0, 3.0)
    planned = journal.policy.planned
    assert planned == 7 and trials_left(journal.state, planned) == 4
    assert trials_left(journal.state, 3) == 4, "with auto, more is asked for than was planned"
    assert trials_left(journal.state, 9) == 6, "some have not been asked for yet"
    for trial_id in journal.pending:
        journal.train(trial_id, 1.0)
    assert trials_left(journal.state, planned) == trials_left(journal.state, 3) == 0


def test_a_sweep_of_version_0_1_0_still_ranks() -> None:
    state = SweepState.read(SweepPaths.of(ASSETS, "sweep-0.1.0"))
    found = configurations(state)
    means = [c.mean for c in found if c.complete and c.mean is not None]
    assert means and means == sorted(means)
    winner = best(state)
    assert winner and not winner.reference
    assert exit_code(state) == (130 if state.open else 0)


CONFIRM = {"confirm": 2, "confirm_top": 2}


def confirming(*losses: float) -> Journal:
    """Three configurations whose search is over and whose two leaders train with fresh seeds."""
    journal = swept(*losses, **CONFIRM)
    journal.decide(slots=99)
    return journal


def test_the_winner_is_read_from_the_fresh_seeds_alone_once_they_are_done() -> None:
    journal = confirming(1.0, 2.0, 3.0)
    fresh = [t for t in journal.state.trials.values() if t.phase == "confirm"]
    assert [(t.values["lora.rank"], t.seed) for t in fresh] == [
        (1, 10_000),
        (2, 10_000),
        (1, 10_001),
        (2, 10_001),
    ]
    for trial, loss in zip(fresh, (5.0, 2.5, 6.0, 2.7), strict=True):
        assert best(journal.state).values == {"lora.rank": 1}, "before, as the search has it"  # type: ignore[union-attr]
        journal.train(trial.trial_id, loss)
    winner = best(journal.state)
    assert winner and winner.values == {"lora.rank": 2} and winner.phase == "confirm"
    assert winner.mean == pytest.approx(2.6) and len(winner.done) == 2
    assert order(journal.state) == [2, 1, 3]
    assert [c.phase for c in configurations(journal.state)] == ["confirm", "confirm", "search"]
    assert winner.best_trial.seed == 10_000


def test_the_search_shares_no_place_with_the_confirmed() -> None:
    """As an accuracy over few rows may have it."""
    journal = confirming(1.0, 2.0, 3.0)
    for trial_id in journal.pending:
        journal.train(trial_id, 3.0)
    winner = best(journal.state)
    assert winner and [c.values["lora.rank"] for c in tied(journal.state, winner)] == [2]
    assert [str(place) for place in places(configurations(journal.state))] == ["1=", "1=", "3"]


def test_a_leader_whose_confirmation_failed_comes_behind_the_confirmed() -> None:
    journal = confirming(1.0, 2.0, 3.0)
    for trial_id in journal.pending:
        rank = journal.state.trials[trial_id].values["lora.rank"]
        if rank == 1:
            journal.finish(trial_id, FAILED, "bad")
        else:
            journal.train(trial_id, 9.0)
    assert order(journal.state) == [2, 1, 3]


def test_a_warm_clone_is_a_configuration_of_its_own() -> None:
    journal = swept(1.0, 2.0)
    parent = next(iter(journal.state.trials.values()))
    for step, seed in ((4, 0), (4, 1)):
        declared = {
            "trial_id": f"child{seed}",
            "index": 2 + seed,
            "run_name": "c",
            "total_steps": 8,
        }
        origin = {"parent": parent.trial_id, "step": step, "path": "tinker://m/weights/c"}
        more = {"values": dict(parent.values), "seed": seed, "origin": origin}
        fork = Decision("fork", f"child{seed}", 8, 8, "cloned", {**declared, **more})
        journal.write([fork])
        journal.train(f"child{seed}", 0.5)
    found = configurations(journal.state)
    assert [len(c.trials) for c in found] == [2, 1, 1] and found[0].forked
