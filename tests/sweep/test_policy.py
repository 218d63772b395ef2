"""The policy alone: the same state gives the same decisions, slots are kept to, nothing hangs."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from sweep_states import Journal

from crucible_tinkex.registry import DONE, FAILED, LOST, PAUSED, PERSON, STOPPED, Decision

RANKS = {"lora.rank": [1, 2, 3, 4, 5, 6]}


def kinds(decisions: list[object]) -> list[str]:
    return [d.kind for d in decisions]  # type: ignore[attr-defined]


@pytest.mark.parametrize("slots", [1, 2, 4, 99])
def test_it_asks_only_for_free_slots(slots: int) -> None:
    journal = Journal(search={"space": RANKS})
    assert kinds(journal.decide(slots=slots)) == ["start"] * min(slots, 6)
    assert journal.decide(slots=slots) == []
    journal.train(next(iter(journal.state.trials)), 1.0)
    assert len(journal.decide(slots=slots)) == (1 if slots < 6 else 0)


def test_it_ends_once_and_only_when_nothing_is_left() -> None:
    journal = Journal(search={"space": {"lora.rank": [2]}})
    journal.decide()
    assert journal.decide() == []
    journal.train(journal.pending[0], 1.0)
    assert kinds(journal.decide()) == ["end"]
    assert journal.decide() == [] and journal.state.complete


def test_a_trial_waits_in_its_slot_until_another_needs_it() -> None:
    journal = Journal(halving=True, search={"space": {"lora.rank": [1, 2]}})
    journal.decide(slots=3)
    first, second = journal.pending
    journal.train(first, 2.0)
    assert journal.decide(slots=3) == [], "nobody needs its slot"
    journal.train(second, 1.0)
    assert kinds(journal.decide(slots=3)) == ["stop", "advance"]


def test_it_pauses_when_somebody_waits_for_the_slot() -> None:
    journal = Journal(halving=True, search={"space": RANKS})
    journal.decide(slots=1)
    (first,) = journal.pending
    journal.train(first, 2.0)
    assert kinds(journal.decide(slots=1)) == ["pause", "start"]
    assert journal.state.trials[first].state == PAUSED


def test_nothing_is_decided_on_a_session_that_has_not_answered() -> None:
    journal = Journal(halving=True, search={"space": RANKS})
    journal.decide(slots=1)
    (first,) = journal.pending
    journal.train(first, 2.0)
    assert journal.decide(slots=1, answering=(first,)) == []
    assert kinds(journal.decide(slots=1)) == ["pause", "start"]


@pytest.mark.parametrize("seed", range(60))
def test_it_always_ends_whatever_the_losses(seed: int) -> None:
    rng = random.Random(seed)
    journal = Journal(halving=True, search={"space": RANKS, "seeds": rng.choice([[0], [0, 1]])})
    slots = rng.randint(1, 5)
    for _ in range(400):
        while decisions := journal.decide(slots=slots):
            assert all(d.reason for d in decisions)
            if "start" in kinds(decisions):  # what is promoted may wait for a slot
                assert len(journal.state.active) <= slots
        if journal.state.ended:
            break
        assert journal.pending, "no decision, and nobody trains"
        trial_id = rng.choice(journal.pending)
        fate = rng.random()
        if fate < 0.1:
            journal.finish(trial_id, FAILED, "bad")
        elif fate < 0.15:
            journal.finish(trial_id, LOST, "gone")
        else:
            journal.train(trial_id, rng.choice([1.0, 2.0, 3.0, rng.random(), math.nan]))
    states = Counter(t.state for t in journal.state.trials.values())
    assert journal.state.ended and not journal.state.open, states
    assert set(states) <= {DONE, STOPPED, FAILED, LOST}
    assert len(journal.state.trials) == 6 * len(journal.experiment.search.seeds)


def test_what_is_not_a_number_goes_on_last() -> None:
    journal = Journal(halving=True, search={"space": {"lora.rank": [1, 2]}})
    journal.decide()
    bad, good = journal.pending
    journal.train(bad, math.nan)
    journal.train(good, 9.0)
    decided = {d.trial_id: d.kind for d in journal.decide()}
    assert decided == {bad: "stop", good: "advance"}


def test_a_metric_to_maximise_is_judged_the_other_way() -> None:
    search = {"space": {"lora.rank": [1, 2]}, "metric": "eval/accuracy"}
    journal = Journal(halving=True, search=search, evaluation={"generate": True})
    journal.decide()
    low, high = journal.pending
    journal.train(low, 1.0, **{"eval/accuracy": 0.1})
    journal.train(high, 2.0, **{"eval/accuracy": 0.9})
    assert {d.trial_id: d.kind for d in journal.decide()} == {low: "stop", high: "advance"}


def test_lost_is_tried_again_once_a_run_and_failed_only_when_asked() -> None:
    journal = Journal(search={"space": {"lora.rank": [1, 2]}})
    journal.decide()
    lost, failed = journal.pending
    journal.finish(lost, LOST, "gone")
    journal.finish(failed, FAILED, "bad")
    assert kinds(journal.decide()) == ["end"], "not within the run"
    resumed = journal.policy.resume(journal.state)
    assert [(d.kind, d.trial_id) for d in resumed] == [("retry", lost)]
    resumed = journal.policy.resume(journal.state, retry=[failed])
    assert {d.trial_id for d in resumed} == {lost, failed}


@pytest.mark.parametrize("halving", [False, True])
def test_more_steps_take_up_what_is_done_and_what_is_on_its_way(halving: bool) -> None:
    search = {"space": {"lora.rank": [1, 2, 3]}}
    journal = Journal(search=search)
    journal.decide(slots=2)
    done, half = journal.pending
    journal.train(done, 1.0)
    longer = {"max_steps": 16, "batch_size": 4}
    journal.ask(halving=halving, search=search, train=longer)
    resumed = journal.policy.resume(journal.state)
    assert {(d.kind, d.trial_id, d.total_steps) for d in resumed} == {
        ("advance", done, 16),
        ("advance", half, 16),
    }
    journal.write(resumed)
    assert not journal.policy.resume(journal.state), "taken up once"
    (started,) = journal.decide(slots=3)
    assert (started.kind, started.total_steps) == ("start", 16)


def test_fewer_steps_end_what_is_further() -> None:
    search = {"space": {"lora.rank": [1]}}
    journal = Journal(search=search)
    journal.decide()
    assert len(journal.pending) == 1
    journal.ask(search=search, train={"max_steps": 4, "batch_size": 4})
    (decision,) = journal.policy.resume(journal.state)
    assert (decision.to_step, decision.total_steps) == (4, 4)


def test_more_values_and_seeds_ask_only_for_what_is_new() -> None:
    journal = Journal(search={"space": {"lora.rank": [1, 2]}})
    while journal.decide():
        for trial_id in journal.pending:
            journal.train(trial_id, 1.0)
    old = set(journal.state.trials)
    journal.ask(search={"space": {"lora.rank": [2, 1, 3]}, "seeds": [0, 1]})
    assert journal.policy.planned == 6
    new = journal.decide(slots=9)
    assert len(new) == 4 and not old & {d.trial_id for d in new}
    indices = [t.index for t in journal.state.trials.values()]
    assert indices == list(range(6)), "numbered on"


def test_rungs_that_moved_do_not_confuse_it() -> None:
    """The trial was measured further on than its new rung, and not there."""
    journal = Journal(search={"space": {"lora.rank": [1]}})
    journal.decide()
    (trial_id,) = journal.pending
    journal._tell("attempt", trial_id=trial_id, attempt=1)
    journal._tell("result", trial_id=trial_id, step=5, metrics={"eval/nll": 1.0})
    journal._tell("attempt", trial_id=trial_id, attempt=2)
    journal.ask(halving=True, search={"space": {"lora.rank": [1]}}, train={"max_steps": 16})
    journal.write(journal.policy.resume(journal.state))
    assert journal.state.trials[trial_id].target == 2
    assert journal.decide() == []


def test_asking_is_the_same_after_a_resume() -> None:
    journal = Journal(search={"space": RANKS, "seeds": [3, 4]})
    journal.decide(slots=5)
    used = journal.policy._asker.ask(journal.state, 4)
    fresh = journal.fresh_policy()._asker.ask(journal.state, 4)
    assert used == fresh and [p.index for p in used] == [5, 6, 7, 8]
    assert [(p.values["lora.rank"], p.seed) for p in used] == [(3, 4), (4, 3), (4, 4), (5, 3)]


def halved() -> tuple[Journal, str, str]:
    """Of two trials the better one went on, the other was stopped."""
    journal = Journal(halving=True, search={"space": {"lora.rank": [1, 2]}})
    journal.decide()
    worse, better = journal.pending
    journal.train(worse, 2.0)
    journal.train(better, 1.0)
    journal.decide()
    assert journal.state.trials[worse].state == STOPPED
    return journal, worse, better


def test_when_the_leader_fails_the_best_of_the_stopped_is_trained_to_the_end() -> None:
    journal, worse, better = halved()
    journal.finish(better, FAILED, "bad")
    assert journal.policy.decide(journal.state, slots=3, answering=[worse]) == []
    (again,) = journal.decide()
    assert (again.kind, again.trial_id, again.to_step) == ("advance", worse, 4)
    while not journal.state.ended:
        for trial_id in journal.pending:
            journal.train(trial_id, 2.0)
        journal.decide()
    assert journal.state.trials[worse].state == DONE


def test_nobody_is_taken_up_again_where_one_is_done() -> None:
    journal, worse, better = halved()
    for _ in range(2):
        journal.train(better, 1.0)
        journal.decide()
    assert journal.state.trials[worse].state == STOPPED
    assert journal.state.trials[better].state == DONE and journal.state.ended


def searched_by_topk(losses: dict[tuple[int, int], float], **search: object) -> Journal:
    """Two ranks and two seeds, of which the best trial alone passes the rung."""
    stopping = {"rule": "topk", "first_rung": 2}
    space = {"lora.rank": [1, 2]}
    journal = Journal(search={"space": space, "seeds": [0, 1], "stopping": stopping, **search})
    while any(d.kind == "start" for d in journal.decide(slots=4)):
        pass
    for trial_id in journal.pending:
        trial = journal.state.trials[trial_id]
        journal.train(trial_id, losses[trial.values["lora.rank"], trial.seed])
    journal.decide(slots=4)
    return journal


SCATTERED = {(1, 0): 1.0, (1, 1): 4.0, (2, 0): 2.0, (2, 1): 3.0}


def test_where_no_configuration_has_all_its_seeds_the_best_gets_them() -> None:
    """Or the search has no best, and nobody to confirm."""
    journal = searched_by_topk(SCATTERED, confirm=1, confirm_top=1)
    (first,) = journal.pending
    journal.train(first, 1.0)
    (again,) = journal.decide()
    missing = journal.state.trials[again.trial_id]
    assert (again.kind, missing.values["lora.rank"], missing.seed) == ("advance", 1, 1)
    assert journal.decide() == []
    journal.train(again.trial_id, 3.0)
    assert kinds(journal.decide()) == ["confirm"]


def test_one_that_lost_a_seed_for_good_leaves_it_to_the_next() -> None:
    journal = searched_by_topk(SCATTERED)
    (first,) = journal.pending
    journal.finish(first, FAILED, "bad")
    again = [journal.state.trials[d.trial_id] for d in journal.decide()]
    assert sorted((t.values["lora.rank"], t.seed) for t in again) == [(2, 0), (2, 1)]


def test_what_a_person_ended_is_not_trained_to_the_end() -> None:
    journal = searched_by_topk(SCATTERED)
    (first,) = journal.pending
    journal.write([Decision("stop", first, by=PERSON)])
    again = [journal.state.trials[d.trial_id] for d in journal.decide()]
    assert sorted((t.values["lora.rank"], t.seed) for t in again) == [(2, 0), (2, 1)]


CONFIRM = {"space": {"lora.rank": [1, 2, 3]}, "seeds": [0, 1], "confirm": 2, "confirm_top": 2}


def searched(**search: object) -> Journal:
    """A search that is over; the loss is the rank."""
    journal = Journal(search={**CONFIRM, **search})
    while any(d.kind == "start" for d in journal.decide(slots=3)):
        for trial_id in journal.pending:
            journal.train(trial_id, float(journal.state.trials[trial_id].values["lora.rank"]))
    return journal


def test_leaders_are_confirmed_with_fresh_seeds_in_pairs_before_the_end() -> None:
    journal = searched()
    first = [t for t in journal.state.trials.values() if t.phase == "confirm"]
    assert journal.state.ended is None and len(first) == 3, "only as many as there are slots"
    journal.train(first[0].trial_id, 1.5)
    assert kinds(journal.decide()) == ["confirm"]
    found = [t for t in journal.state.trials.values() if t.phase == "confirm"]
    seeds = {
        rank: sorted(t.seed for t in found if t.values["lora.rank"] == rank) for rank in (1, 2)
    }
    assert seeds == {1: [10_000, 10_001], 2: [10_000, 10_001]}
    assert [t.index for t in journal.state.trials.values()] == list(range(10))
    assert journal.policy.planned == 10
    for trial_id in journal.pending:
        assert journal.state.trials[trial_id].target == 8, "no rung: its value is wanted"
        journal.train(trial_id, 1.5)
    assert kinds(journal.decide()) == ["end"]


def test_a_confirmation_that_failed_is_not_asked_for_again() -> None:
    journal = searched(confirm_top=1)
    for trial_id in journal.pending:
        journal.finish(trial_id, FAILED, "bad")
    assert kinds(journal.decide()) == ["end"]


def test_nothing_is_confirmed_where_no_configuration_is_complete() -> None:
    journal = Journal(search=CONFIRM)
    while any(d.kind == "start" for d in journal.decide()):
        for trial_id in journal.pending:
            journal.finish(trial_id, FAILED, "bad")
    assert journal.state.ended
    assert not any(t.phase == "confirm" for t in journal.state.trials.values())


def test_an_amended_search_confirms_its_new_leaders() -> None:
    journal = searched()
    while not journal.state.ended:
        for trial_id in journal.pending:
            journal.train(trial_id, 1.0)
        journal.decide()
    journal.ask(search={**CONFIRM, "confirm": 3})
    journal._tell("amended", meta={"experiment": journal.experiment.model_dump(mode="json")})
    assert [(d.kind, d.trial["seed"]) for d in journal.decide()] == [("confirm", 10_002)] * 2  # type: ignore[index]


def test_the_best_of_those_that_go_on_go_first_where_slots_are_few() -> None:
    """The last one to come holds the slot, and three pass."""
    stopping = {"rule": "topk", "first_rung": 2, "keep": 3}
    losses = iter([2.0, 1.0, 5.0, 3.0])
    journal = Journal(search={"space": {"lora.rank": [1, 2, 3, 4]}, "stopping": stopping})
    while kinds(journal.decide(slots=1))[-1:] == ["start"]:
        journal.train(journal.pending[0], next(losses))
    last = list(journal.state.trials)[-1]
    assert journal.state.trials[last].state == PAUSED
    assert "go first" in journal.state.trials[last].decisions[-1].reason
    journal.decide(slots=1)
    order = [trial.results[2]["eval/nll"] for trial in journal.state.active.values()]
    assert order == [1.0, 2.0, 3.0]
