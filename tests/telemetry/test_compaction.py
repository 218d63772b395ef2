from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from event_trials import Trial

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.compaction import FANOUT, compact
from crucible_tinkex.telemetry.log.parts import (
    Part,
    all_parts,
    list_parts,
    load_part,
    metadata_of,
    write_parts,
)
from crucible_tinkex.telemetry.log.schema import events_to_table
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.telemetry.query.connection import connect


def test_a_sweep_that_is_resumed_often_has_few_files(events_folder: Path, trial: Trial) -> None:
    chance, most = random.Random(1), 0
    for step in range(150):
        with EventLog(events_folder) as log:
            log.append([trial.loss(1, step, 1.0) for _ in range(chance.randrange(1, 40))])
        most = max(most, len(list_parts(events_folder)))
    assert all_parts(events_folder) == list_parts(events_folder)
    assert most <= 12
    rows = read_events(events_folder)
    assert rows.num_rows == trial.writer.event("sample").seq - 1
    assert len(set(rows["event_id"].to_pylist())) == rows.num_rows


def write(folder: Path, number: int, events: list[Event]) -> Part:
    coverage = {events[0].writer: [[events[0].seq, events[-1].seq]]}
    (part,) = write_parts(folder, events_to_table(events), number=number, coverage=coverage)
    return part


def test_full_parts_are_left_alone(events_folder: Path, trial: Trial) -> None:
    full: set[str] = set()
    chance = random.Random(2)
    for number in range(1, 90):
        write(events_folder, number, [trial.loss(1, number, chance.random()) for _ in range(50)])
        compact(events_folder, through=number, full_bytes=12_000)
        parts = list_parts(events_folder)
        assert full <= {part.path.name for part in parts}
        full |= {part.path.name for part in parts if part.size >= 12_000}
    assert len(full) >= 2
    assert read_events(events_folder).num_rows == 89 * 50


def test_parts_of_a_segment_that_may_be_rolled_again_are_not_merged(
    events_folder: Path, trial: Trial
) -> None:
    for number in range(1, 12):
        write(events_folder, number, [trial.loss(1, number, 1.0)])
    assert compact(events_folder, through=7) == 0
    assert compact(events_folder, through=9) == 1
    assert [part.last for part in list_parts(events_folder)] == [9, 10, 11]


def test_a_merged_part_tells_what_it_holds(events_folder: Path, trial: Trial) -> None:
    for step in range(FANOUT):
        with EventLog(events_folder) as log:
            log.append([trial.loss(1, step, 1.0)])
    (part,) = list_parts(events_folder)
    about = metadata_of(load_part(part))
    assert (part.first, part.last, about["rows"]) == (1, 8, "8")
    assert about["coverage"] == f'{{"{trial.writer.writer}":[[1,8]]}}'
    assert pq.ParquetFile(part.path).num_row_groups == 1
    with EventLog(events_folder) as log:  # which knows from it what it has
        assert log.append([trial.loss(1, 9, 1.0)])[0][0].seq == 9


def test_damage_is_not_merged_into_a_sound_file(events_folder: Path, trial: Trial) -> None:
    parts = [write(events_folder, n, [trial.loss(1, n, 1.0)]) for n in range(1, 10)]
    path = parts[3].path
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptLogError, match=path.name):
        compact(events_folder, through=9)
    assert list_parts(events_folder) == parts


def test_merging_disturbs_no_query_that_runs(events_folder: Path, trial: Trial) -> None:
    for number in range(1, 10):
        write(events_folder, number, [trial.loss(1, number, 1.0)])
    with connect(events_folder) as connection:
        assert compact(events_folder, through=9) == 1
        assert len(all_parts(events_folder)) == 1
        assert connection.sql("SELECT count(*) FROM events_all").fetchall() == [(9,)]
