"""Sweeps of strategy `auto`: what is asked for at every prefix of a journal, whatever fails, and
where the search ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sweep_states import Journal

from crucible_tinkex.registry import DONE, FAILED, RUNNING, STOPPED

RATE, RANK, SCHEDULE = "optimizer.learning_rate", "lora.rank", "optimizer.schedule"
SPACE = {
    RATE: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    RANK: [2, 4, 8, 16],
    SCHEDULE: ["constant", "cosine"],
}
STOPPING = {"rule": ["topk", "behind"], "first_rung": 1, "keep": 3, "every": 2}


def searching(**search: Any) -> dict[str, Any]:
    chosen = {"strategy": "auto", "trials": 24, "space": SPACE, "stopping": STOPPING}
    return {"search": {**chosen, "reference": False, **search}}


def loss(values: dict[str, Any]) -> float:
    """Best at 1e-3, rank 8, cosine."""
    rate = abs(math.log10(values[RATE] / 1e-3))
    return 1 + rate + abs(math.log2(values[RANK] / 8)) / 4 + 0.3 * (values[SCHEDULE] != "cosine")


def finish(journal: Journal, *, slots: int = 2) -> None:
    while True:
        while journal.decide(slots=slots):
            pass
        if journal.state.ended:
            return
        pending = journal.pending[:slots]
        assert pending, "it stands still"
        for trial_id in pending:
            journal.train(trial_id, loss(journal.state.trials[trial_id].values))


def tried(journal: Journal) -> list[dict[str, Any]]:
    return [t.values for t in journal.state.trials.values()]


@pytest.mark.parametrize("slots", [1, 3, 40])
def test_it_ends_with_the_best_and_knows_all_its_neighbours(slots: int) -> None:
    journal = Journal(**searching())
    finish(journal, slots=slots)
    done = [t.values for t in journal.state.trials.values() if t.state == DONE]
    best = min(done, key=loss)
    assert best == {RATE: 1e-3, RANK: 8, SCHEDULE: "cosine"}
    beside = [{**best, **other} for other in ({RATE: 3e-4}, {RATE: 3e-3}, {RANK: 4}, {RANK: 16})]
    assert all(b in tried(journal) for b in [*beside, {**best, SCHEDULE: "constant"}])
    assert len(tried(journal)) <= 24


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_rebuilt_search_asks_the_same_at_every_prefix(seeds: list[int]) -> None:
    """`Journal.decide` compares with a fresh policy on a copy of the state each time."""
    journal = Journal(**searching(seeds=seeds))
    journal.live(loss, slots=4)
    pairs = [(repr(t.values), t.seed) for t in journal.state.trials.values()]
    assert len(set(pairs)) == len(pairs), "never the same configuration and seed twice"
    assert {t.state for t in journal.state.trials.values()} >= {DONE, STOPPED}


def test_nobody_is_judged_before_those_that_climb_are_measured() -> None:
    journal = Journal(**searching())
    journal.decide(slots=40)
    first = journal.pending
    assert len(first) == 6
    for trial_id in first[:-1]:
        journal.train(trial_id, loss(journal.state.trials[trial_id].values))
    assert all(d.kind == "pause" for d in journal.decide(slots=40)), "the last may be the best"
    journal.train(first[-1], 1.0)
    started = [d for d in journal.decide(slots=40) if d.kind == "start"]
    assert started and all("a neighbour of the one in place 1" in d.reason for d in started)


def ended(journal: Journal, *, slots: int) -> list[dict[str, Any]]:
    """Who is trained to the end, in order, where `constant` is ahead until the last step."""
    order = []
    while not journal.state.ended:
        while journal.decide(slots=slots):
            assert len(journal.state.active) <= slots, "nobody is promoted without a slot"
        for trial_id in journal.pending[:1]:
            trial = journal.state.trials[trial_id]
            is_last = trial.target == trial.total_steps
            late = 0.0 if is_last else 0.5 * (trial.values[SCHEDULE] == "cosine")
            order += [trial.values] if is_last else []
            journal.train(trial_id, loss(trial.values) + late)
    return order


def test_those_that_pass_go_on_one_by_one_the_most_promising_by_those_that_ended_first() -> None:
    """At the rung the constant ones are better, all of them; what counts is how those ended."""
    stopping = {"rule": "topk", "first_rung": 1, "keep": 6}
    space = {RATE: [1e-3], RANK: [4, 8, 16], SCHEDULE: ["constant", "cosine"]}
    order = ended(Journal(**searching(space=space, stopping=stopping)), slots=1)
    schedules = [values[SCHEDULE] for values in order]
    assert len(order) == 6 and schedules[:3] == ["constant", "cosine", "cosine"]


@pytest.mark.parametrize("slots", [2, 5])
def test_all_that_pass_are_trained_whatever_the_slots(slots: int) -> None:
    stopping = {"rule": "topk", "first_rung": 1, "keep": 6}
    space = {RATE: [1e-3], RANK: [2, 4, 8, 16], SCHEDULE: ["constant", "cosine"]}
    order = ended(Journal(**searching(space=space, stopping=stopping)), slots=slots)
    assert len(order) >= 6


def test_guesses_come_first_and_are_said_to_be_of_earlier_sweeps() -> None:
    guess = {RATE: 1e-3, RANK: 4, SCHEDULE: "cosine"}
    journal = Journal(**searching(enqueue=[guess]))
    decisions = journal.decide(slots=40)
    assert len(decisions) == 4 and tried(journal)[0] == guess
    assert decisions[0].reason == "one of search.enqueue, suggested by earlier sweeps"


def test_a_cap_on_trials_ends_the_climb_with_a_trial_that_is_done() -> None:
    journal = Journal(**searching(trials=7))
    finish(journal)
    assert len(tried(journal)) == 7
    assert any(t.state == DONE for t in journal.state.trials.values())


def test_a_trial_that_a_person_paused_is_not_waited_for() -> None:
    journal = Journal(**searching())
    journal.decide(slots=6)
    held = journal.pending[0]
    decision = {"kind": "pause", "trial_id": held, "by": "person", "reason": "wait"}
    journal._tell("decision", decision=decision)
    for trial_id in journal.pending:
        journal.train(trial_id, loss(journal.state.trials[trial_id].values))
    assert any(d.kind == "start" for d in journal.decide(slots=6))


def test_more_trials_go_on_from_what_there_is() -> None:
    journal = Journal(**searching(trials=8))
    finish(journal)
    first = tried(journal)
    journal.ask(**searching(trials=24))
    journal.state.ended = None
    finish(journal)
    assert tried(journal)[:8] == first and len(tried(journal)) > 8


def test_conditions_leave_neighbours_out() -> None:
    journal = Journal(**searching(where=[f"{RANK} <= 4 or {SCHEDULE} == 'cosine'"]))
    finish(journal)
    assert all(v[RANK] <= 4 or v[SCHEDULE] == "cosine" for v in tried(journal))


def test_all_failed_ends() -> None:
    journal = Journal(**searching())
    while not journal.state.ended:
        while journal.decide(slots=4):
            pass
        for trial_id in journal.pending:
            journal.finish(trial_id, FAILED, "bad")
    assert {t.state for t in journal.state.trials.values()} == {FAILED}
    assert RUNNING not in {t.state for t in journal.state.open.values()}
