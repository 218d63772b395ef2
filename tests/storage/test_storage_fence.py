"""Two writers without a lock: the older one is stopped, and what it was told is safe is kept."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from faulty_files import FaultyFiles

from crucible_tinkex.errors import StaleEpochError, SweepBusyError
from crucible_tinkex.storage import SegmentLog, read_log, read_segment


def test_the_older_writer_is_stopped_before_it_writes(tmp_path: Path) -> None:
    older = SegmentLog(tmp_path, mark=True, fenced=True)
    older.append([b"old"])
    older.check_is_newest()
    newer = SegmentLog(tmp_path, mark=True, fenced=True)
    assert newer.previous == (1, older.path.stat().st_size)
    for _ in range(2):
        with pytest.raises(StaleEpochError, match=r"newer run.*000002\.log.*000001\.log"):
            older.append([b"never"])
    with pytest.raises(SweepBusyError):
        older.check_is_newest()
    newer.append([b"new"])
    assert list(read_log(tmp_path)) == [b"old", b"new"]


def test_what_is_written_while_the_newer_one_opens_is_not_acknowledged(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    older = SegmentLog(tmp_path, mark=True, fenced=True, files=disk)
    older.append([b"old"])
    newer: list[SegmentLog] = []
    disk.after_fsync = lambda: newer.append(SegmentLog(tmp_path, mark=True, fenced=True))
    with pytest.raises(StaleEpochError):
        older.append([b"too late"])
    assert newer[0].previous == (1, older.path.stat().st_size)  # may count; was not promised
    newer[0].append([b"new"])
    assert list(read_log(tmp_path)) == [b"old", b"too late", b"new"]


def test_a_failing_older_writer_leaves_what_the_newer_one_has_measured(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    older = SegmentLog(tmp_path, mark=True, fenced=True, files=disk)
    older.append([b"old"])
    newer: list[SegmentLog] = []
    disk.after_fsync = lambda: newer.append(SegmentLog(tmp_path, fenced=True)) or _interrupt()
    with pytest.raises(KeyboardInterrupt):
        older.append([b"too late"])
    with pytest.raises(StaleEpochError):
        older.append([b"never"])
    assert newer[0].previous is not None
    assert list(read_segment(older.path, newer[0].previous[1])) == [b"old", b"too late"]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_what_a_stopped_writer_wrote_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    older = SegmentLog(tmp_path, mark=True)  # as one whose look for the newer came too late
    older.append([b"old"])
    newer = SegmentLog(tmp_path, mark=True, fenced=True)
    older.append([b"beyond"])
    assert newer.previous is not None
    assert list(read_segment(older.path, newer.previous[1])) == [b"old"]


def test_the_bytes_that_a_new_writer_builds_on_are_durable(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path) as log:
        log.append([b"old"])
    with SegmentLog(tmp_path, files=disk) as newer:
        assert newer.previous == (1, log.path.stat().st_size)
        assert list(disk.durable) == [log.path]


def test_the_first_writer_has_nothing_before_it(tmp_path: Path) -> None:
    with SegmentLog(tmp_path) as log:
        assert log.previous is None


def test_many_writers_at_once_get_a_segment_each_and_one_stays(tmp_path: Path) -> None:
    """Each acknowledged record lies within what the writers after it have measured."""
    begin = threading.Barrier(8)
    acknowledged: dict[int, list[bytes]] = {}
    measured: dict[int, int] = {}
    stopped: list[int] = []

    def write(who: int) -> None:
        begin.wait()
        with SegmentLog(tmp_path, mark=True, fenced=True) as log:
            number = int(log.path.stem)
            mine = acknowledged.setdefault(number, [])
            if log.previous:
                measured[log.previous[0]] = log.previous[1]
            try:
                for i in range(200):
                    log.append([b"%d %d" % (who, i)])
                    mine.append(b"%d %d" % (who, i))
            except StaleEpochError:
                stopped.append(number)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(acknowledged) == list(range(1, 9))
    assert 8 not in stopped
    for number, length in measured.items():
        kept = list(read_segment(tmp_path / f"{number:06d}.log", length))
        assert kept[: len(acknowledged[number])] == acknowledged[number]
