"""What was acknowledged is readable exactly once, wherever the process was killed."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import event_victim as victim
import pyarrow as pa
import pyarrow.parquet as pq

from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.parts import all_parts, evaluations_folder, list_parts
from crucible_tinkex.telemetry.log.wal import wal_folder
from crucible_tinkex.telemetry.query import query

SEQUENCE = "SELECT seq FROM events_all UNION ALL SELECT seq FROM evaluations_all"


def stored(folder: Path) -> list[int]:
    numbers: list[int] = query(folder, SEQUENCE)["seq"].to_pylist()
    return sorted(numbers)


def start_victim(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, victim.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_random_moments(events_folder: Path) -> None:
    chance = random.Random(7)
    last = 0
    for _ in range(5):
        # what was acknowledged last is sent again, as a sender does that missed the answer
        process = start_victim("loop", events_folder, max(1, last - victim.BATCH + 1))
        assert process.stdout is not None
        for _ in range(chance.randrange(5, 40)):
            last = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.01))
        process.kill()
        last = max([last, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        numbers = stored(events_folder)
        assert numbers[:last] == list(range(1, last + 1))
        assert max(Counter(numbers).values()) == 1
        last = len(numbers)
    EventLog(events_folder).close()
    assert stored(events_folder) == list(range(1, last + 1))
    assert not list(wal_folder(events_folder).glob("*.log"))
    assert last >= 5 * 4 * victim.BATCH


def test_killed_before_each_file_operation(tmp_path: Path) -> None:
    subprocess.run([sys.executable, victim.__file__, "steps", str(tmp_path)], check=True)
    notes = sorted(tmp_path.glob("*.acknowledged"))
    points = [int(note.stem) for note in notes]
    assert len(points) > 50
    during_roll = during_merge = 0
    for point, note in zip(points, notes, strict=True):
        folder = tmp_path / f"{point}" / "events"
        last = int(note.read_text().split()[-1])
        numbers = stored(folder)
        assert max(Counter(numbers).values()) == 1, f"doubled when killed before {point}"
        assert numbers[:last] == list(range(1, last + 1)), f"lost when killed before {point}"
        parts = {f"{part.last:06d}" for part in list_parts(folder)}
        segments = {path.stem for path in wal_folder(folder).glob("*.log")}
        during_roll += bool(parts & segments)
        during_merge += len(all_parts(folder)) > len(list_parts(folder))
        with EventLog(folder) as log:  # the sender repeats everything
            log.append(victim.numbered(1, victim.BEFORE + 60))
        rolled = [pq.read_table(f, columns=["seq"]) for f in (folder, evaluations_folder(folder))]
        numbers = sorted(pa.concat_tables(rolled)["seq"].to_pylist())
        assert numbers == list(range(1, victim.BEFORE + 61)), f"after recovery from {point}"
        assert not list(folder.parent.rglob(".*.tmp"))
    assert during_roll >= 4, "no kill fell between a Parquet rename and the segment's removal"
    assert during_merge >= 6, "no kill fell between a merge and the removal of its sources"


def test_a_torn_last_record_costs_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    original = tmp_path / "original"
    with EventLog(original) as log:
        cut_at_every_place(tmp_path, original, log)


def cut_at_every_place(tmp_path: Path, original: Path, log: EventLog) -> None:
    (segment,) = wal_folder(original).glob("*.log")
    log.append(victim.numbered(1))
    acknowledged = segment.stat().st_size
    log.append(victim.numbered(21))
    size = segment.stat().st_size
    for cut in range(acknowledged, size, (size - acknowledged) // 8):
        folder = tmp_path / f"cut{cut}" / "events"
        shutil.copytree(original, folder)
        with open(wal_folder(folder) / segment.name, "r+b") as f:
            f.truncate(cut)
        assert stored(folder) == list(range(1, 21))
        with EventLog(folder) as recovered:
            assert recovered.append(victim.numbered(21)) == [victim.numbered(21)]
        assert stored(folder) == list(range(1, 41))


def test_readers_see_each_event_once_while_it_is_written_and_rolled(events_folder: Path) -> None:
    process = start_victim("loop", events_folder, 1)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        last = reads = 0
        while reads < 20 or last < 30 * victim.BATCH:
            reads += 1
            numbers = stored(events_folder)
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= last
            last = len(numbers)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
