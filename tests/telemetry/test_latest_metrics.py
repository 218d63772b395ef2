from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

from event_trials import Trial

from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.telemetry.latest import LatestMetrics


def test_keeps_the_newest_value_of_every_metric(trial: Trial) -> None:
    latest = LatestMetrics()
    events = [trial.loss(1, 1, 3.0), trial.loss(1, 2, 2.0), trial.loss(1, 2, 2.5, "eval/nll")]
    for event in events:
        latest.feed(event)
    assert latest.changes() == {
        "t1": {
            "attempt": 1,
            "step": 2,
            "time_us": events[-1].time_us,
            "state": "",
            "waiting": None,
            "phase": None,
            "metrics": {"train/nll": 2.0, "eval/nll": 2.5},
        }
    }


def test_a_resumed_trial_forgets_what_it_will_do_again(trial: Trial) -> None:
    latest = LatestMetrics()
    events = [
        trial.loss(1, 4, 4.0),
        trial.loss(1, 4, 4.5, "eval/nll"),
        trial.loss(1, 6, 6.0),
        trial.start(2, 4),
        trial.loss(1, 7, 7.0),  # the old attempt did not notice that it was replaced
    ]
    for event in events:
        latest.feed(event)
    row = latest.changes()["t1"]
    assert (row["attempt"], row["step"], row["metrics"]) == (2, 4, {"eval/nll": 4.5})


def test_the_order_in_which_trials_arrive_makes_no_difference() -> None:
    batches = [[t.loss(1, s, float(s)) for s in (1, 2)] for t in (Trial("a"), Trial("b"))]
    results = []
    for order in itertools.permutations(batches):
        latest = LatestMetrics()
        for event in itertools.chain(*order):
            latest.feed(event)
        results.append(latest.changes())
    assert results[0] == results[1]
    assert set(results[0]) == {"a", "b"}


def test_states_and_snapshots_are_separate_copies() -> None:
    latest = LatestMetrics()
    writer = EventWriter("s", "e")
    latest.feed(writer.event("trial_state", trial_id="t", name="running"))
    latest.feed(writer.event("sweep_state", name="running"))
    latest.changes()["t"]["metrics"]["x"] = 1.0
    row = latest.changes()["t"]
    assert (row["state"], row["metrics"]) == ("running", {})
    assert list(latest.changes()) == ["t"]


def test_waiting_ends_with_the_wait_or_the_attempt(trial: Trial) -> None:
    latest = LatestMetrics()

    def wait(attempt: int, name: str) -> Event:
        extra = {"reason": "full", "resume_at": None}
        return trial.writer.event(
            "queue_state", trial_id=trial.trial_id, attempt=attempt, name=name, extra=extra
        )

    def seen() -> object:
        return latest.changes()["t1"]["waiting"]

    latest.feed(wait(1, "paused_capacity"))
    assert seen() == {"state": "paused_capacity", "reason": "full", "resume_at": None}
    latest.feed(wait(1, "active"))
    assert seen() is None
    latest.feed(wait(1, "paused_capacity"))
    latest.feed(trial.start(2, 0))
    latest.feed(wait(1, "paused_capacity"))
    assert seen() is None


def test_equal_trials_of_two_sweeps_are_two() -> None:
    latest = LatestMetrics()
    one, other = Trial("t1"), Trial("t1")
    other.writer.sweep_id = "other"
    for event in (one.loss(1, 4, 4.0), other.start(2, 0), one.loss(1, 5, 5.0)):
        latest.feed(event)
    assert latest.changes()["t1"]["metrics"] == {"train/nll": 5.0}


def test_a_trial_that_an_older_version_began_goes_on(trial: Trial) -> None:
    latest = LatestMetrics()
    for event in (trial.loss(1, 4, 4.0), trial.loss(1, 4, 0.5, "eval/nll")):
        latest.feed(dataclasses.replace(event, sweep_id=""))
    latest.feed(trial.start(2, 4))
    row = latest.changes()["t1"]
    assert (row["attempt"], row["metrics"]) == (2, {"train/nll": 4.0, "eval/nll": 0.5})


def test_only_what_changed_is_told() -> None:
    latest = LatestMetrics()
    trials = [Trial("a"), Trial("b"), Trial("c")]
    for t in trials:
        latest.feed(t.loss(1, 1, 1.0))
    seen = latest.revision
    assert set(latest.changes(-1)) == {"a", "b", "c"}
    assert latest.changes(seen) == {}
    latest.feed(trials[1].loss(1, 2, 2.0))
    assert set(latest.changes(seen)) == {"b"}


def test_what_was_stored_goes_on(trial: Trial) -> None:
    latest, again = LatestMetrics(), LatestMetrics()
    events = [trial.start(1, 0), trial.loss(1, 1, 1.0), Trial("t2").loss(1, 3, 3.0)]
    for event in events:
        latest.feed(event)
    again.load(json.loads(json.dumps(latest.to_json())))
    assert again.changes() == latest.changes()
    seen = latest.revision
    again.feed(trial.loss(1, 2, 2.0))
    assert set(again.changes(seen)) == {"t1"}


def test_phases_are_folded_with_how_long_they_take(trial: Trial) -> None:
    latest = LatestMetrics()

    def tell(attempt: int, name: str, at_us: int, **extra: int) -> None:
        event = trial.writer.event(
            "phase", trial_id="t1", attempt=attempt, name=name, extra={"phase": name, **extra}
        )
        latest.feed(dataclasses.replace(event, time_us=at_us))

    def phase() -> Any:
        return latest.changes()["t1"]["phase"]

    tell(1, "evaluating", 1_000_000, done=0, of=8)
    tell(1, "evaluating", 4_000_000, done=2, of=8)
    expected = {"phase": "evaluating", "done": 2, "of": 8, "since_us": 1_000_000, "s": 3.0}
    assert phase() == expected
    restored = LatestMetrics()
    restored.load(json.loads(json.dumps(latest.to_json())))
    assert restored.changes() == latest.changes()
    tell(1, "training", 9_000_000)
    assert phase() == {"phase": "training", "done": 0, "of": 0, "since_us": 9_000_000, "s": 0.0}
    tell(1, "evaluating", 10_000_000, done=0, of=8)
    assert (phase()["done"], phase()["s"]) == (0, 0.0)
    latest.feed(trial.start(2, 4))
    assert phase() is None
    tell(1, "evaluating", 12_000_000, done=4, of=8)  # of the replaced attempt
    assert phase() is None
