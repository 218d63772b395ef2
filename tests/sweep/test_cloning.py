"""Clones: what they inherit, where they begin, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from local_sweeps import Bench
from sweep_states import Journal

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import DONE, FAILED, Decision, TrialRecord
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.orders.cloning import clone_plan
from crucible_tinkex.sweep.orders.control import Command
from crucible_tinkex.sweep.results.views.tables import query_tables

SEARCH = {"space": {"lora.rank": [4]}}
RATE = {"optimizer.learning_rate": 1e-3}


def trained(*, schedule: str = "constant") -> tuple[Journal, TrialRecord, Planner]:
    """One trial that is done, with checkpoints at 4 and 8."""
    journal = Journal(search=SEARCH, optimizer={"schedule": schedule})
    journal.decide()
    (trial_id,) = journal.pending
    journal._tell("attempt", trial_id=trial_id, attempt=1)
    for step in (4, 8):
        journal.save(trial_id, step)
    journal.train(trial_id, 1.0)
    planner = Planner(journal.experiment, rows=20, fingerprint="f")
    return journal, journal.state.trials[trial_id], planner


def test_a_warm_clone_inherits_all_that_was_not_changed() -> None:
    journal, parent, planner = trained()
    plan = clone_plan(journal.state, planner, parent, RATE, at=5)
    assert plan.values == {"lora.rank": 4, **RATE} and plan.seed == parent.seed
    assert plan.origin and (plan.origin.step, plan.origin.parent) == (4, parent.trial_id)
    assert plan.origin.path == parent.checkpoints[0].path
    assert (plan.index, plan.total_steps) == (1, 8)
    journal.write([journal.policy.fork(plan)])
    child = journal.state.trials[plan.trial_id]
    assert (child.origin, child.step, child.target) == (plan.origin, 4, 8)
    assert planner.of(child).trial_id == child.trial_id, "a resumed sweep finds it again"


def test_the_parent_and_the_step_are_a_part_of_the_identity() -> None:
    journal, parent, planner = trained()
    longer = {**RATE, "train.max_steps": 20}
    plans = [
        clone_plan(journal.state, planner, parent, longer, fresh=True),
        clone_plan(journal.state, planner, parent, longer, at=4),
        clone_plan(journal.state, planner, parent, longer, at=8),
    ]
    assert len({p.trial_id for p in plans}) == 3
    fresh = planner.plan({**parent.values, **longer}, parent.seed)
    assert plans[0].trial_id == fresh.trial_id, "a fresh clone is a trial like any other"
    assert plans[1] == clone_plan(journal.state, planner, parent, longer, at=7), "the same again"


def test_a_checkpoint_that_a_fork_still_needs_is_said_so() -> None:
    journal, parent, planner = trained()
    plan = clone_plan(journal.state, planner, parent, RATE, at=4)
    journal.write([journal.policy.fork(plan)])
    early, late = (c.path for c in parent.checkpoints)
    assert journal.state.needed(early) and not journal.state.needed(late)
    journal.finish(plan.trial_id, FAILED, "it may be tried again")
    assert journal.state.needed(early)
    journal._tell("attempt", trial_id=plan.trial_id, attempt=1)
    journal.save(plan.trial_id, 8)
    journal.finish(plan.trial_id, DONE)
    assert not journal.state.needed(early)


def test_lineage_is_shown() -> None:
    journal, parent, planner = trained()
    for fresh in (False, True):
        plan = clone_plan(
            journal.state,
            planner,
            parent,
            {"optimizer.beta1": 0.8},
            fresh=fresh,
            at=None if fresh else 4,
        )
        journal.write([journal.policy.fork(plan)])
    rows = query_tables(journal.state)["trials"].to_pylist()
    assert [(r["parent"], r["forked_at"]) for r in rows] == [
        (None, None),
        (parent.trial_id, 4),
        (parent.trial_id, None),
    ]


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({}, {"at": 4}, "nothing is changed"),
        ({}, {"fresh": True}, "nothing is changed"),
        ({"lora.rank": 8}, {"at": 4}, "--fresh"),
        (RATE, {}, "begin at step 8 and end at 8"),
        (RATE, {"at": 3}, "no checkpoint at or before step 3"),
        (RATE, {"at": 4, "fresh": True}, "--at or --fresh"),
        ({"optimizer.learning_rate": 0.0}, {"at": 4}, "greater than 0"),
        ({"optimizer.rate": 1.0}, {"at": 4}, "unknown axis"),
        ({"train.max_length": 9}, {"at": 4}, "cannot vary"),
        ({"train.loss": "nll + nl"}, {"at": 4}, "train.loss: unknown loss 'nl'"),
        ({"train.loss": "math:floor"}, {"at": 4}, "the sweep does not know math:floor yet"),
    ],
)
def test_a_clone_that_cannot_be_is_refused(
    changes: dict[str, object], options: dict[str, object], why: str
) -> None:
    journal, parent, planner = trained()
    with pytest.raises(ConfigError, match=why):
        clone_plan(journal.state, planner, parent, changes, **options)  # type: ignore[arg-type]


def cloned(bench: Bench, changes: dict[str, object], *, at: int | None = None) -> str:
    """Asks for a clone of the one trial of a sweep that is over; the trial's id."""
    (parent,) = bench.run().trials
    bench.inbox.put(Command("clone", (parent,), changes, at=at))
    return parent


def test_a_fork_goes_on_from_its_parents_weights_and_its_data_order(tmp_path: Path) -> None:
    """One that changes only what does not matter before its end ends where its parent does."""
    bench = Bench(tmp_path, search={**SEARCH, "reference": False})
    cloned(bench, {"optimizer.warmup_steps": 4}, at=4)  # over when it begins
    parent, child = bench.run().trials.values()
    assert list(bench.state.commands.values()) == [
        f"clone: {child.run_name}, from step 4 of {parent.run_name}"
    ]
    assert not bench.inbox.waiting()
    assert (child.state, child.step, child.attempt) == (DONE, 8, 1)
    assert child.metrics["eval/nll"] == parent.metrics["eval/nll"]
    assert bench.backend.calls.count("optim_step") == 8 + 4
    assert child.spent.train_tokens * 2 == parent.spent.train_tokens


def test_a_fork_whose_parents_checkpoint_is_lost_fails_by_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search={**SEARCH, "reference": False})
    cloned(bench, RATE, at=4)
    (parent,) = bench.state.trials.values()
    bench.backend.forget(parent.checkpoints[0].path)
    child = list(bench.run().trials.values())[-1]
    assert child.state == FAILED and parent.checkpoints[0].path in str(child.error)
    assert "step 4 of trial" in str(child.error)


def test_a_later_attempt_of_a_fork_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    train = {"max_steps": 12, "checkpoint_every": 3}
    bench = Bench(tmp_path, search={**SEARCH, "reference": False}, train=train)
    cloned(bench, RATE, at=3)
    trained = bench.backend.calls.count("optim_step")

    async def kill(bench: Bench) -> None:
        while not any(t.origin and t.checkpoints for t in bench.state.trials.values()):
            await asyncio.sleep(0.05)
        bench.hosts[-1].die()

    child = list(bench.run(meanwhile=kill).trials.values())[-1]
    assert (child.state, child.attempt, child.step) == (DONE, 2, 12)
    assert bench.backend.calls.count("optim_step") - trained < 2 * 9


def test_a_journal_of_a_decision_kind_from_the_future_is_read() -> None:
    journal, parent, _ = trained()
    journal.write([Decision("mutate", parent.trial_id, reason="later")])  # type: ignore[arg-type]
    assert parent.state == DONE
