from __future__ import annotations

import itertools

from event_trials import Trial

from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.telemetry.latest import LatestMetrics


def test_keeps_the_newest_value_of_every_metric(trial: Trial) -> None:
    latest = LatestMetrics()
    events = [trial.loss(1, 1, 3.0), trial.loss(1, 2, 2.0), trial.loss(1, 2, 2.5, "eval/nll")]
    for event in events:
        latest.feed(event)
    assert latest.snapshot() == {
        "t1": {
            "attempt": 1,
            "step": 2,
            "time_us": events[-1].time_us,
            "state": "",
            "waiting": None,
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
    row = latest.snapshot()["t1"]
    assert (row["attempt"], row["step"], row["metrics"]) == (2, 4, {"eval/nll": 4.5})


def test_the_order_in_which_trials_arrive_makes_no_difference() -> None:
    batches = [[t.loss(1, s, float(s)) for s in (1, 2)] for t in (Trial("a"), Trial("b"))]
    results = []
    for order in itertools.permutations(batches):
        latest = LatestMetrics()
        for event in itertools.chain(*order):
            latest.feed(event)
        results.append(latest.snapshot())
    assert results[0] == results[1]
    assert set(results[0]) == {"a", "b"}


def test_states_and_snapshots_are_separate_copies() -> None:
    latest = LatestMetrics()
    writer = EventWriter("s", "e")
    latest.feed(writer.event("trial_state", trial_id="t", name="running"))
    latest.feed(writer.event("sweep_state", name="running"))
    latest.snapshot()["t"]["metrics"]["x"] = 1.0
    row = latest.snapshot()["t"]
    assert (row["state"], row["metrics"]) == ("running", {})
    assert list(latest.snapshot()) == ["t"]


def test_waiting_ends_with_the_wait_or_the_attempt(trial: Trial) -> None:
    latest = LatestMetrics()

    def wait(attempt: int, name: str) -> Event:
        extra = {"reason": "full", "resume_at": None}
        return trial.writer.event(
            "queue_state", trial_id=trial.trial_id, attempt=attempt, name=name, extra=extra
        )

    def seen() -> object:
        return latest.snapshot()["t1"]["waiting"]

    latest.feed(wait(1, "paused_capacity"))
    assert seen() == {"state": "paused_capacity", "reason": "full", "resume_at": None}
    latest.feed(wait(1, "active"))
    assert seen() is None
    latest.feed(wait(1, "paused_capacity"))
    latest.feed(trial.start(2, 0))
    latest.feed(wait(1, "paused_capacity"))
    assert seen() is None
