"""What is left to do, in seconds: steps and evaluations, as far as speeds are known."""

from __future__ import annotations

from typing import Any

import pytest

from crucible_tinkex.registry import DONE, PENDING, RUNNING, TrialRecord
from crucible_tinkex.sweep.results.views.view import SweepView, TrialView, harmless


def make_trial(step: int, *, state: str = RUNNING, total: int = 10, **live: Any) -> TrialView:
    record = TrialRecord(
        trial_id=f"t{step}", index=0, run_name="r", values={}, seed=0, total_steps=total
    )
    record.state, record.step = state, step
    return TrialView(record, live)


def view_of(*trials: TrialView, **settings: Any) -> SweepView:
    view = SweepView("s", trials=trials, planned=len(trials), steps_each=10, **settings)
    view.measure()
    return view


FAST = {"perf/step_s": 1.0}
KNOWN = {"perf/step_s": 1.0, "perf/eval_s": 20.0}


def test_nothing_is_promised_before_a_step_was_measured() -> None:
    assert view_of().eta_s is None
    assert view_of(make_trial(0, metrics={"perf/eval_s": 3.0})).eta_s is None


def test_an_evaluation_to_come_counts() -> None:
    assert view_of(make_trial(4, metrics=KNOWN)).eta_s == 6 + 20
    assert view_of(make_trial(4, metrics=KNOWN), eval_every=5).eta_s == 6 + 40


def test_an_evaluation_in_progress_counts_by_what_is_left_of_it() -> None:
    phase = {"phase": "evaluating", "done": 3, "of": 4, "s": 30.0}
    view = view_of(make_trial(10, metrics=FAST, phase=phase))
    assert view.eval_s == 40.0
    assert view.eta_s == pytest.approx(10.0)


def test_whole_evaluations_say_more_than_the_pace_of_one_that_waits_for_others() -> None:
    waiting = {"phase": "evaluating", "done": 1, "of": 1000, "s": 50.0}
    view = view_of(make_trial(10, metrics=FAST, phase=waiting))
    assert (view.eval_s, view.evaluations_unknown) == (0.0, True)
    view = view_of(make_trial(10, metrics=KNOWN, phase={**waiting, "done": 100}))
    assert view.eval_s == 20.0


def test_it_says_when_evaluations_are_not_in_it() -> None:
    view = view_of(make_trial(4, metrics=FAST))
    assert (view.eta_s, view.evaluations_unknown) == (6.0, True)
    view = view_of(make_trial(4, metrics=FAST), evaluates=False)
    assert (view.eta_s, view.evaluations_unknown) == (6.0, False)


def test_work_is_shared_by_the_slots_but_one_trial_is_not_divided() -> None:
    four = [make_trial(0, metrics=KNOWN) for _ in range(4)]
    assert view_of(*four, slots=2).eta_s == 60
    assert view_of(make_trial(0, metrics=KNOWN), make_trial(9, metrics=KNOWN), slots=2).eta_s == 30


def test_trials_that_ended_need_nothing_and_those_not_asked_for_yet_all() -> None:
    view = view_of(make_trial(3, state=DONE), make_trial(10, metrics=KNOWN))
    view.planned = 4
    assert view.eta_s == 20 + 2 * 30


def test_an_attempt_that_began_is_running_before_the_record_knows() -> None:
    phase = {"phase": "evaluating", "done": 1, "of": 2, "s": 1.0}
    trial = make_trial(0, state=PENDING, attempt=1, phase=phase)
    assert (trial.state, trial.phase["done"]) == (RUNNING, 1)
    assert make_trial(0, state=PENDING).state == PENDING
    assert make_trial(0, state=DONE, attempt=1).state == DONE


def test_an_estimate_does_not_jump_with_one_measurement() -> None:
    view = view_of(make_trial(0, metrics=KNOWN))
    view.trials = [make_trial(0, metrics={**KNOWN, "perf/step_s": 11.0})]
    view.measure()
    assert view.step_s == pytest.approx(2.0)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), SystemExit(3)])
def test_an_observer_that_raises_is_left_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def observer(view: SweepView) -> None:
        calls.append(view)
        raise error

    observe = harmless(observer)
    observe(view_of())
    observe(view_of())
    assert len(calls) == 1
    assert "raised and is not called again" in caplog.text and "Traceback" in caplog.text
