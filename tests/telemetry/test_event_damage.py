"""No damage of a file changes rows unsaid, and every error names the file."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_trials import Trial

from crucible_tinkex.errors import CorruptLogError, StorageError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.parts import list_parts, load_part
from crucible_tinkex.telemetry.log.wal import wal_folder
from crucible_tinkex.telemetry.query import query, read_events
from crucible_tinkex.telemetry.recorder import Recorder

ASSET = Path(__file__).parent.parent / "assets" / "sweep-0.1.0" / "events"


@pytest.fixture
def part(events_folder: Path, trial: Trial) -> Path:
    with EventLog(events_folder) as log:
        log.append([trial.loss(1, step, step / 7) for step in range(40)])
    (found,) = list_parts(events_folder)
    return found.path


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_every_flip_in_a_part_is_named(events_folder: Path, part: Path) -> None:
    intact = part.read_bytes()
    chance = random.Random(3)
    for _ in range(40):
        flip(part, chance.randrange(len(intact)), chance.randrange(8))
        with pytest.raises(CorruptLogError, match=part.name) as raised:
            read_events(events_folder)
        assert raised.value.exit_code == 5
        part.write_bytes(intact)
    assert read_events(events_folder).num_rows == 40
    footer = len(intact) - 8 - int.from_bytes(intact[-8:-4], "little")
    (found,) = list_parts(events_folder)
    for at in range(footer, len(intact)):
        flip(part, at, chance.randrange(8))
        with pytest.raises(CorruptLogError, match=part.name):
            load_part(found)
        part.write_bytes(intact)


def test_pages_are_proved_for_other_readers_too(part: Path) -> None:
    data = part.read_bytes()
    column = pq.ParquetFile(part).metadata.row_group(0).column(0)
    flip(part, column.data_page_offset + column.total_compressed_size // 2, 0)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.ParquetFile(part, page_checksum_verification=True).read()
    assert len(part.read_bytes()) == len(data)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 500, None])
def test_garbage_in_place_of_a_part_is_named(
    events_folder: Path, part: Path, content: bytes | None
) -> None:
    part.unlink()
    if content is None:
        part.mkdir()
    else:
        part.write_bytes(content)
    for read in (lambda: read_events(events_folder), lambda: query(events_folder, "SELECT 1")):
        with pytest.raises(StorageError, match=part.name):
            read()


def test_a_part_of_an_older_version_is_named_too(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    shutil.copytree(ASSET, folder)
    part = folder / "kind=evaluation" / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(CorruptLogError, match=r"kind=evaluation/part-000002.parquet"):
        read_events(folder)
    with pytest.raises(CorruptLogError, match=r"kind=evaluation/part-000002.parquet"):
        Recorder(SweepPaths(tmp_path))


def test_a_file_of_somebody_else_is_named(events_folder: Path, part: Path) -> None:
    stranger = part.with_name("part-copy.parquet")
    shutil.copy(part, stranger)
    with pytest.raises(CorruptLogError, match="part-copy"):
        read_events(events_folder)


def sweep_with_parts(tmp_path: Path, trial: Trial) -> tuple[SweepPaths, Path]:
    paths = SweepPaths.of(tmp_path, "s")
    recorder = Recorder(paths)
    recorder.record([trial.start(1, 0), trial.loss(1, 1, 1.0)])
    recorder.close()
    (part,) = [p for p in list_parts(paths.events) if p.kind == "training_step"]
    return paths, part.path


def test_opening_notices_a_part_of_another_size(tmp_path: Path, trial: Trial) -> None:
    paths, part = sweep_with_parts(tmp_path, trial)
    with part.open("ab") as f:
        f.write(b"x")
    for _ in range(2):  # and lets go of the folder
        with pytest.raises(CorruptLogError, match=part.name):
            Recorder(paths)
    part.unlink()  # as the message advises
    recorder = Recorder(paths)
    assert part.name in recorder.changes(-1).faults[0]
    recorder.close()
    recorder = Recorder(paths)
    assert recorder.faults() == ()
    recorder.close()


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_opening_notices_damage_of_the_wal(tmp_path: Path, trial: Trial, place: float) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    first = Recorder(paths)
    first.record([trial.start(1, 0), trial.loss(1, 1, 1.0)])
    first.record([trial.loss(1, 2, 1.0)])
    copy = SweepPaths.of(tmp_path, "killed")
    shutil.copytree(paths.root, copy.root)
    first.close()
    (segment,) = wal_folder(copy.events).glob("*.log")
    data = segment.read_bytes()
    flip(segment, int(place * (len(data) - 1)), 3)
    for _ in range(2):
        with pytest.raises(CorruptLogError, match=segment.name):
            Recorder(copy)
    segment.write_bytes(b"garbage " * 100)
    with pytest.raises(CorruptLogError, match=segment.name):
        Recorder(copy)
    segment.write_bytes(data)
    Recorder(copy).close()
    assert read_events(copy.events).num_rows == 3


def test_a_length_that_claims_too_much_is_no_torn_end(tmp_path: Path, trial: Trial) -> None:
    folder = tmp_path / "killed" / "events"
    with EventLog(tmp_path / "events") as log:
        log.append([trial.loss(1, 1, 1.0)])
        (segment,) = wal_folder(tmp_path / "events").glob("*.log")
        before = segment.stat().st_size
        log.append([trial.loss(1, 2, 2.0)])
        shutil.copytree(tmp_path / "events", folder)
    segment = wal_folder(folder) / segment.name
    flip(segment, before + 2, 0)  # of the last record's length, by 65,536
    with pytest.raises(CorruptLogError, match=segment.name):
        read_events(folder)
    with pytest.raises(CorruptLogError, match=segment.name):
        EventLog(folder)


def test_a_damaged_part_stops_no_roll(tmp_path: Path, trial: Trial) -> None:
    paths, part = sweep_with_parts(tmp_path, trial)
    flip(part, 40, 1)
    for step in range(2, 12):
        recorder = Recorder(paths)
        recorder.record([trial.loss(1, step, 1.0)])
        recorder.close()
    assert part.name in recorder.faults()[0]
    flip(part, 40, 1)
    assert read_events(paths.events).num_rows == 12


def test_a_damaged_snapshot_costs_nothing_but_time(tmp_path: Path, trial: Trial) -> None:
    paths, _ = sweep_with_parts(tmp_path, trial)
    flip(paths.events / "_snapshot.json", 50, 2)
    recorder = Recorder(paths)
    assert recorder.changes(-1).trials["t1"]["metrics"] == {"train/nll": 1.0}
    assert recorder.record([trial.loss(1, 2, 2.0)]) == 1
    recorder.close()
