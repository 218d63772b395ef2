"""`run.fail_fast`: a sweep whose trials all fail is given up, and can be taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench
from sweep_states import Journal

from crucible_tinkex.config import RunSection
from crucible_tinkex.errors import ConfigError, OperationFailedError
from crucible_tinkex.registry import DONE, FAILED, LOST, Decision
from crucible_tinkex.sweep.results.leaderboard import exit_code
from crucible_tinkex.testing import FakeBackend

REFUSED = OperationFailedError("this loss is not for you", category="user")


def journal(number: int | bool = 2, **changes: Any) -> Journal:
    return Journal(run={"fail_fast": number}, **changes)


def begun(number: int | bool = 2) -> tuple[Journal, list[str]]:
    """Three trials train."""
    made = journal(number)
    made.decide()
    return made, made.pending


def test_after_so_many_failures_what_trains_is_saved_and_the_sweep_ends() -> None:
    sweep, (first, second, third) = begun()
    sweep.finish(first, FAILED, "it diverged")
    assert {d.kind for d in sweep.decide()} == {"start"}
    others = [t for t in sweep.pending if t not in (first, second)]
    sweep.finish(second, FAILED, "it diverged, too")
    decided = sweep.decide()
    assert [(d.kind, d.by) for d in decided] == [("pause", "fail_fast")] * 2
    assert {d.trial_id for d in decided} == set(others) and third in others
    (end,) = sweep.decide()
    assert (end.kind, end.by) == ("end", "fail_fast")
    assert "run.fail_fast = 2: 2 trials failed and none succeeded" in end.reason
    assert "it diverged, too" in end.reason
    assert not sweep.decide()
    assert exit_code(sweep.state) == 1 and not sweep.state.complete


def test_a_result_shows_that_the_fault_is_not_shared() -> None:
    sweep, (first, second, third) = begun()
    sweep.train(first, 1.0)
    for trial in (second, third):
        sweep.finish(trial, FAILED, "it diverged")
    assert {d.kind for d in sweep.decide()} == {"start"}


def test_the_result_of_one_that_failed_later_shows_nothing() -> None:
    sweep = journal(1, search={"stopping": {"rule": "halving"}})
    sweep.decide(slots=1)
    (first,) = sweep.pending
    sweep.train(first, 1.0)
    sweep.finish(first, FAILED, "it diverged")
    assert [(d.kind, d.by) for d in sweep.decide(slots=1)] == [("end", "fail_fast")]


def test_what_was_lost_is_no_fault_of_a_trial() -> None:
    sweep, (first, second, _third) = begun()
    for trial in (first, second):
        sweep.finish(trial, LOST, "the host died")
    assert {d.kind for d in sweep.decide()} == {"start"}


def test_without_it_all_are_tried() -> None:
    sweep, (first, second, third) = begun(False)
    for trial in (first, second, third):
        sweep.finish(trial, FAILED, "it diverged")
    assert {d.kind for d in sweep.decide()} == {"start"}


def test_a_new_run_has_as_many_chances_again() -> None:
    sweep, (first, second, _third) = begun()
    for trial in (first, second):
        sweep.finish(trial, FAILED, "it diverged")
    sweep.decide()
    sweep.decide()
    sweep.begin_run("run-2")
    resumed = sweep.policy.resume(sweep.state)
    assert [d.kind for d in resumed] == ["advance"] and "run.fail_fast" in resumed[0].reason
    sweep.write(resumed)
    assert {d.kind for d in sweep.decide()} == {"start"}
    sweep.finish(sweep.pending[0], FAILED, "again")
    assert {d.kind for d in sweep.decide()} == {"start"}
    sweep.finish(sweep.pending[0], FAILED, "again")
    assert {(d.kind, d.by) for d in sweep.decide()} == {("pause", "fail_fast")}


def test_one_that_is_tried_again_has_not_failed() -> None:
    sweep, (first, second, _third) = begun()
    sweep.finish(first, FAILED, "it diverged")
    sweep.write([Decision("retry", first, reason="a person asked")])
    sweep.finish(second, FAILED, "it diverged")
    assert "pause" not in {d.kind for d in sweep.decide()}


def test_a_sweep_that_was_given_up_is_finished_by_retry(tmp_path: Path) -> None:
    backend = FakeBackend(
        delay_s=0.1, failures=[("forward_backward", n, REFUSED) for n in range(1, 9)]
    )
    sweep = Bench(tmp_path, backend=backend, run={"fail_fast": 2})
    state = sweep.run()
    assert state.ended_by == "fail_fast" and exit_code(state) == 1
    assert "this loss is not for you" in (state.ended or "")
    assert len(state.trials) < 7
    backend.failures = []
    sweep.retry = [t.trial_id for t in state.trials.values() if t.state == FAILED]
    state = sweep.run()
    assert {t.state for t in state.trials.values()} == {DONE} and len(state.trials) == 7
    assert exit_code(state) == 0 and state.complete


@pytest.mark.parametrize("value", [True, 0, -1, "many", 1.5])
def test_a_number_or_false(value: Any) -> None:
    with pytest.raises((ValueError, ConfigError)):
        RunSection.model_validate({"fail_fast": value})
