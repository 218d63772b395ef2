from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from crucible_tinkex.errors import CorruptLogError, StorageError, SweepBusyError
from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.parts import list_parts
from crucible_tinkex.telemetry.log.wal import wal_folder
from crucible_tinkex.telemetry.query import read_events


def batch(writer: EventWriter, size: int = 10) -> list[Event]:
    kinds = ("training_step", "evaluation")
    return [writer.event(kinds[i % 2], trial_id="t", step=i, value=1.0) for i in range(size)]


def stored_ids(folder: Path) -> Counter[str]:
    return Counter(read_events(folder, all_attempts=True)["event_id"].to_pylist())


def expected(*batches: list[Event]) -> Counter[str]:
    return Counter(event.event_id for events in batches for event in events)


@pytest.fixture
def writer() -> EventWriter:
    return EventWriter("sweep", "experiment")


def test_a_repeated_batch_is_stored_once_also_after_a_restart(
    events_folder: Path, writer: EventWriter
) -> None:
    first, second = batch(writer), batch(writer)
    with EventLog(events_folder) as log:
        assert log.append(first) == [first]
        assert log.append(first, first) == [[], []]
        log.roll()
        assert log.append(first) == [[]]
        assert log.append([*first[5:], *second[:3], second[0]]) == [second[:3]]
    with EventLog(events_folder) as log:
        assert log.append([*first, *second]) == [second[3:]]
    assert stored_ids(events_folder) == expected(first, second)


def test_a_later_log_never_replaces_older_parts(events_folder: Path, writer: EventWriter) -> None:
    batches = [batch(writer) for _ in range(4)]
    for events in batches:
        with EventLog(events_folder) as log:
            log.append(events)
        assert not list(wal_folder(events_folder).glob("*.log"))
    assert stored_ids(events_folder) == expected(*batches)
    assert sum(part.kind == "evaluation" for part in list_parts(events_folder)) == 4


def test_numbers_go_on_even_when_the_wal_folder_was_deleted(
    events_folder: Path, writer: EventWriter
) -> None:
    first, second = batch(writer), batch(writer)
    with EventLog(events_folder) as log:
        log.append(first)
    with EventLog(events_folder):
        assert stored_ids(events_folder) == expected(first)
    (wal_folder(events_folder) / "lock").unlink()
    wal_folder(events_folder).rmdir()
    with EventLog(events_folder) as log:
        log.append(second)
    assert stored_ids(events_folder) == expected(first, second)


@pytest.mark.parametrize(
    "limits", [{"roll_rows": 20}, {"roll_bytes": 4_000}, {"roll_seconds": 15.0}]
)
def test_each_limit_rolls_by_itself(
    events_folder: Path, writer: EventWriter, limits: dict[str, float]
) -> None:
    now = 0.0
    with EventLog(events_folder, clock=lambda: now, **limits) as log:  # type: ignore[arg-type]
        log.append(batch(writer))
        now = 10.0
        assert not log.roll_if_due()
        assert not list_parts(events_folder)
        now = 20.0
        log.append(batch(writer))
        assert log.roll_if_due()
        assert len(list_parts(events_folder)) == 2  # one of each kind


def test_one_owner(events_folder: Path) -> None:
    with EventLog(events_folder), pytest.raises(SweepBusyError):
        EventLog(events_folder)
    EventLog(events_folder).close()


def test_a_closed_log_refuses(events_folder: Path, writer: EventWriter) -> None:
    log = EventLog(events_folder)
    log.close()
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.append(batch(writer))


def test_leftover_temporary_files_are_removed(events_folder: Path, writer: EventWriter) -> None:
    with EventLog(events_folder) as log:
        log.append(batch(writer))
    leftover = events_folder / "kind=evaluation" / ".part-000002.parquet.77.tmp"
    leftover.write_bytes(b"half")
    EventLog(events_folder).close()
    assert not leftover.exists()


def test_a_roll_that_fails_keeps_the_events_and_is_tried_again(
    events_folder: Path, writer: EventWriter
) -> None:
    first, second = batch(writer), batch(writer)
    log = EventLog(events_folder, roll_rows=10)
    obstacle = events_folder / "kind=evaluation"
    obstacle.write_text("a file where a folder must be")
    log.append(first)
    assert not log.roll_if_due()
    assert log.roll_error is not None
    obstacle.unlink()
    assert stored_ids(events_folder) == expected(first)
    log.append(second)
    assert log.roll_if_due()
    assert log.roll_error is None
    assert stored_ids(events_folder) == expected(first, second)
    log.close()
    assert stored_ids(events_folder) == expected(first, second)


def test_damage_in_the_middle_of_the_wal_is_named_not_skipped(
    events_folder: Path, writer: EventWriter
) -> None:
    log = EventLog(events_folder)
    log.append(batch(writer))
    log.append(batch(writer))
    (segment,) = wal_folder(events_folder).glob("*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    with pytest.raises(CorruptLogError, match=segment.name):
        read_events(events_folder)
    with pytest.raises(CorruptLogError, match=segment.name):
        log.close()
    with pytest.raises(CorruptLogError, match=segment.name):
        EventLog(events_folder)
    with pytest.raises(CorruptLogError):  # and the refusal did not leave the lock behind
        EventLog(events_folder)
