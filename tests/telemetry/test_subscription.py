"""A subscriber gets what was logged, once and in order, whatever the log goes through meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_trials import Trial

from crucible_tinkex.errors import ConfigError, CorruptLogError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import Lock
from crucible_tinkex.telemetry.history import Telemetry
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.tail import LogTail
from crucible_tinkex.telemetry.subscription import Subscription

Change = Callable[[EventLog], object]


def losses(trial: Trial, first: int, last: int) -> list[Event]:
    """Of two kinds, so that a segment becomes two parts."""
    return [
        trial.loss(1, step, float(step), name)
        for step in range(first, last + 1)
        for name in ("train/nll", "eval/nll")
    ]


def drained(tail: LogTail) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    while (rows := tail.read()) is not None:
        found += zip(rows["writer"].to_pylist(), rows["seq"].to_pylist(), strict=True)
    return found


def keys(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.writer, event.seq) for event in events]


CHANGES: dict[str, Change] = {"nothing": lambda log: None, "a roll": lambda log: log.roll()}


@pytest.mark.parametrize("between", CHANGES)
@pytest.mark.parametrize("after", CHANGES)
def test_a_segment_that_was_half_read_is_read_on_wherever_it_went(
    events_folder: Path, event_log: EventLog, trial: Trial, between: str, after: str
) -> None:
    first, second, third = losses(trial, 1, 3), losses(trial, 4, 6), losses(trial, 7, 9)
    tail = LogTail(events_folder)
    assert tail.read() is None
    event_log.append(first)
    assert drained(tail) == keys(first)
    event_log.append(second)
    CHANGES[between](event_log)
    event_log.append(third)
    CHANGES[after](event_log)
    assert drained(tail) == keys([*second, *third])
    assert tail.read() is None


def test_merged_parts_are_not_read_again(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    tail, given, sent = LogTail(events_folder), [], []
    for k in range(20):  # more than compaction lets lie side by side
        events = losses(trial, 3 * k, 3 * k + 2)
        sent += events
        event_log.append(events)
        if k % 3 == 1:
            given += drained(tail)
        event_log.roll()
    assert len(list(events_folder.glob("kind=training_step/*"))) < 20
    assert given + drained(tail) == keys(sent)


def test_an_owner_that_dies_and_its_successor_lose_and_double_nothing(
    events_folder: Path, trial: Trial
) -> None:
    log = EventLog(events_folder)
    events = losses(trial, 1, 10)
    log.append(events[:7])
    tail = LogTail(events_folder)
    given = drained(tail)
    log.append(events[7:9])
    log.abandon()
    with EventLog(events_folder) as log:
        log.append(events[5:])  # the sender repeats what was not acknowledged
        given += drained(tail)
    assert given + drained(tail) == keys(events)


def test_the_order_of_a_writer_holds_when_its_clock_was_set_back(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    events = losses(trial, 1, 4)
    back = [Event(**{**fields(e), "time_us": e.time_us - 10**6 * e.seq}) for e in events]
    event_log.append(back)
    event_log.roll()
    assert drained(LogTail(events_folder)) == keys(events)


def fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in Event.__dataclass_fields__}


def test_a_reader_beside_a_busy_writer_gets_all_once(events_folder: Path, trial: Trial) -> None:
    sent = [losses(trial, k, k) for k in range(300)]

    def write() -> None:
        with EventLog(events_folder, roll_rows=9) as log:
            for events in sent:
                log.append(events)
                log.roll_if_due()

    writing = threading.Thread(target=write)
    writing.start()
    tail, given = LogTail(events_folder), []
    while writing.is_alive():
        given += drained(tail)
    given += drained(tail)
    assert given == keys([event for events in sent for event in events])


# --- subscriptions -------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths.of(tmp_path, "s")


@pytest.fixture
def telemetry(tmp_path: Path) -> Telemetry:
    return Telemetry(tmp_path)


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events]


def test_it_gives_what_comes_and_ends_with_the_sweep(
    paths: SweepPaths, telemetry: Telemetry, trial: Trial
) -> None:
    driver, log = Lock(paths.lock), EventLog(paths.events)
    log.append([trial.start(1, 0), *losses(trial, 1, 2)])
    stream = telemetry.subscribe("s", event_type="training_step", poll_s=0.01)
    assert [next(stream).step, next(stream).step] == [1, 2]
    rest: list[Event] = []
    reading = threading.Thread(target=lambda: rest.extend(stream))
    reading.start()
    log.append(losses(trial, 3, 4))
    log.close()
    time.sleep(0.05)
    assert reading.is_alive(), "the driver still holds the sweep"
    driver.close()
    reading.join(10)
    assert not reading.is_alive()
    assert steps(rest) == [3, 4]


def test_it_filters(paths: SweepPaths, telemetry: Telemetry, trial: Trial) -> None:
    other = Trial("t2")
    with EventLog(paths.events) as log:
        log.append([trial.start(1, 0), *losses(trial, 1, 2), *losses(other, 5, 6)])
        log.roll()
        log.append([*losses(other, 7, 7), trial.end(1, 2, "done")])
    found = telemetry.subscribe("s", trial_id="t2", name="eval/nll")
    assert [(e.trial_id, e.name, e.step) for e in found] == [
        ("t2", "eval/nll", step) for step in (5, 6, 7)
    ]
    ends = telemetry.subscribe("s", event_type="session")
    assert [event.kind for event in ends] == ["session_start", "session_end"]


@pytest.mark.parametrize("rolled", [False, True])
def test_a_cursor_goes_on_with_the_next_event(
    paths: SweepPaths, telemetry: Telemetry, trial: Trial, rolled: bool
) -> None:
    events = losses(trial, 1, 5)
    log = EventLog(paths.events)
    log.append(events)
    given, cursor = [], None
    for k in range(len(events)):
        stream = telemetry.subscribe("s", after=cursor)
        given.append(next(stream))
        cursor = json.loads(json.dumps(stream.cursor))
        if rolled and k == 3:
            log.roll()
    assert given == events
    log.close()
    assert list(telemetry.subscribe("s", after=cursor)) == []


def test_what_is_there_already_can_be_left_out(
    paths: SweepPaths, telemetry: Telemetry, trial: Trial
) -> None:
    with EventLog(paths.events) as log:
        log.append(losses(trial, 1, 3))
        log.roll()
        log.append(losses(trial, 4, 4))
        stream = telemetry.subscribe("s", replay=False)
        log.append(losses(trial, 5, 5))
        assert steps([next(stream), next(stream)]) == [5, 5]


def test_closing_ends_a_reader_that_waits(
    paths: SweepPaths, telemetry: Telemetry, trial: Trial
) -> None:
    with EventLog(paths.events) as log:
        log.append(losses(trial, 1, 1))
        with telemetry.subscribe("s", poll_s=60) as stream:
            given: list[Event] = []
            reading = threading.Thread(target=lambda: given.extend(stream))
            reading.start()
            deadline = time.monotonic() + 10
            while len(given) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            stream.close()
            reading.join(10)
            assert not reading.is_alive() and len(given) == 2
        assert list(stream) == []


def test_in_an_event_loop(paths: SweepPaths, telemetry: Telemetry, trial: Trial) -> None:
    async def follow() -> list[int]:
        found = []
        with EventLog(paths.events) as log:
            stream = telemetry.subscribe("s", name="train/nll", poll_s=0.01)
            log.append(losses(trial, 1, 2))
            async for event in stream:
                found.append(event.step)
                if event.step == 2:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await anext(stream)  # given up: it loses nothing
                    log.append(losses(trial, 3, 3))
                    break
        return [*found, *[event.step async for event in stream]]

    assert asyncio.run(follow()) == [1, 2, 3]


def test_it_waits_for_a_sweep_that_does_not_run_yet(
    paths: SweepPaths, telemetry: Telemetry, trial: Trial
) -> None:
    assert list(telemetry.subscribe("s", wait_s=0.05, poll_s=0.01)) == []
    stream = telemetry.subscribe("s", wait_s=60, poll_s=0.01)
    found: list[Event] = []
    reading = threading.Thread(target=lambda: found.extend(stream))
    reading.start()
    with EventLog(paths.events) as log:
        log.append(losses(trial, 1, 2))
        time.sleep(0.1)
    reading.join(10)
    assert not reading.is_alive() and len(found) == 4


VICTIM = """
import sys, time
from pathlib import Path
from crucible_tinkex.events import EventWriter
from crucible_tinkex.telemetry.log import EventLog
log = EventLog(Path(sys.argv[1]), roll_rows=5)
writer = EventWriter("s", "s", writer="victim")
for step in range(10**6):
    log.append([writer.event("training_step", step=step, name="train/nll", value=1.0)])
    log.roll_if_due()
"""


def test_a_writer_in_another_process_that_is_killed(
    paths: SweepPaths, telemetry: Telemetry
) -> None:
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(paths.events)])
    try:
        stream = telemetry.subscribe("s", wait_s=60, poll_s=0.01)
        given = [next(stream) for _ in range(50)]
    finally:
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    given += stream
    assert steps(given) == list(range(len(given)))
    with EventLog(paths.events):
        pass
    assert list(telemetry.subscribe("s")) == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment_id": "other"}, "no experiment 'other' in"),
        ({"experiment_id": "../s"}, "must be 1 to 128 letters"),
        ({"event_type": "training_stp"}, "did you mean 'training_step'"),
        ({"event_type": "example"}, "rows of evaluations"),
        ({"after": {"through": 1}}, "is no cursor"),
        ({"after": "yesterday"}, "is no cursor"),
        ({"poll_s": 0}, "must be positive"),
    ],
)
def test_bad_subscriptions_are_refused(
    paths: SweepPaths, telemetry: Telemetry, options: dict[str, Any], message: str
) -> None:
    paths.root.mkdir()
    with pytest.raises(ConfigError, match=message):
        telemetry.subscribe(**{"experiment_id": "s", **options})


def test_damage_is_named(paths: SweepPaths, trial: Trial) -> None:
    with EventLog(paths.events) as log:
        log.append(losses(trial, 1, 3))
    (part,) = paths.events.glob("kind=training_step/*.parquet")
    part.write_bytes(part.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(CorruptLogError, match=part.name):
        list(Subscription(paths))
