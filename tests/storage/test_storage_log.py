"""Appending: what is acknowledged is durable, what failed is gone, a doubtful segment is closed."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from faulty_files import FaultyFiles

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import SegmentLog, read_log, segments

RECORDS = [b"one", b"2", b"three" * 20]


def test_round_trip_over_several_openings(tmp_path: Path) -> None:
    for batch in (RECORDS, [b"later"]):
        with SegmentLog(tmp_path, mark=True) as log:
            log.append(batch)
    assert list(read_log(tmp_path)) == [*RECORDS, b"later"]


def going_on(folder: Path, *records: bytes) -> None:
    with SegmentLog(folder, mark=True, goes_on=True) as log:
        log.append(records)


def test_a_log_that_goes_on_is_one_segment_however_often_it_is_opened(tmp_path: Path) -> None:
    with SegmentLog(tmp_path, mark=True, goes_on=True):
        pass  # it wrote nothing
    for i in range(20):
        going_on(tmp_path, b"%d" % i)
    assert list(read_log(tmp_path)) == [b"%d" % i for i in range(20)]
    assert [path.name for path in segments(tmp_path)] == ["000001.log"]


@pytest.mark.parametrize("left", ["torn", "whole", "no mark", "older mark", "long"])
def test_it_goes_on_in_no_segment_but_what_was_acknowledged_to_its_end(
    tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on(tmp_path, b"first")
    marks = (tmp_path / "length").read_bytes()
    going_on(tmp_path, b"second")
    (segment,) = segments(tmp_path)
    before = segment.read_bytes()
    if left == "torn":
        segment.write_bytes(before + before[:5])
    elif left == "whole":  # its writer died before it set the mark
        segment.write_bytes(before + before[: 8 + len(b"first")])
        assert list(read_log(tmp_path))[-1] == b"first"
    elif left == "no mark":
        (tmp_path / "length").unlink()
    elif left == "older mark":
        (tmp_path / "length").write_bytes(marks)
    else:
        monkeypatch.setattr("crucible_tinkex.storage.log.LONG_BYTES", len(before))
    kept, records = segment.read_bytes(), list(read_log(tmp_path))
    going_on(tmp_path, b"third")
    assert segment.read_bytes() == kept and len(segments(tmp_path)) == 2
    assert list(read_log(tmp_path)) == [*records, b"third"]


def test_it_does_not_go_on_behind_what_could_not_be_cut_back(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    going_on(tmp_path, b"first")
    with SegmentLog(tmp_path, mark=True, goes_on=True, files=disk) as log:
        disk.room, disk.ftruncate_errors = 11, [errno.EROFS]
        with pytest.raises(StorageError, match=r"000001\.log: No space left"):
            log.append([b"torn" * 10])
    going_on(tmp_path, b"in a new segment")
    assert list(read_log(tmp_path)) == [b"first", b"in a new segment"]
    assert len(segments(tmp_path)) == 2


def test_an_append_costs_one_fsync_with_and_without_mark_and_fence(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path, mark=True, fenced=True, files=disk) as log:
        for _ in range(5):
            log.append(RECORDS)
    assert disk.fsyncs == 5


def test_a_refused_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """A child with a file size limit appends until it is refused, then once more what fits."""
    code = f"""
import resource, signal
from pathlib import Path
from crucible_tinkex.storage import SegmentLog
from crucible_tinkex.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = SegmentLog(Path({str(tmp_path)!r}), mark=True)
log.append([b"first"])
try:
    log.append([b"x" * 2000])
except StorageError:
    log.append([b"last"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(read_log(tmp_path)) == [b"first", b"last"]


@pytest.mark.parametrize("room", range(30))
def test_a_full_disk_at_every_byte_leaves_nothing_behind(
    tmp_path: Path, disk: FaultyFiles, room: int
) -> None:
    with SegmentLog(tmp_path, mark=True, files=disk) as log:
        log.append([b"first"])
        disk.room = room
        with pytest.raises(StorageError, match=r"000001\.log: No space left.*free some space"):
            log.append([b"x" * 22, b"y"])
        disk.room = None
        log.append([b"last"])
    assert list(read_log(tmp_path)) == [b"first", b"last"]


def test_a_segment_that_cannot_be_cut_back_never_takes_another_record(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path, mark=True, files=disk) as log:
        log.append([b"first"])
        disk.room, disk.ftruncate_errors = 11, [errno.EROFS]
        with pytest.raises(StorageError, match=r"000001\.log: No space left"):
            log.append([b"torn" * 10])
        disk.room = None
        for _ in range(3):
            with pytest.raises(StorageError, match=r"000001\.log.*cut back.*Read-only"):
                log.append([b"never"])
    with SegmentLog(tmp_path, mark=True) as log:
        log.append([b"in a new segment"])
    assert list(read_log(tmp_path)) == [b"first", b"in a new segment"]


def test_after_a_failed_fsync_nothing_is_acknowledged_by_that_segment(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path, mark=True, files=disk) as log:
        log.append([b"first"])
        disk.fsync_errors = [errno.EIO]
        with pytest.raises(StorageError, match=r"000001\.log: Input/output error"):
            log.append([b"lost"])
        with pytest.raises(StorageError, match=r"000001\.log.*fsync"):
            log.append([b"never"])
    with SegmentLog(tmp_path, mark=True) as log:
        log.append([b"in a new segment"])
    assert list(read_log(tmp_path)) == [b"first", b"in a new segment"]


def test_an_interrupt_in_the_middle_of_a_write_leaves_nothing_behind(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path, mark=True, files=disk) as log:
        log.append([b"first"])
        disk.room, disk.room_error = 11, KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            log.append([b"torn" * 10])
        disk.room = None
        log.append([b"last"])
    assert list(read_log(tmp_path)) == [b"first", b"last"]


def test_a_mark_that_cannot_be_written_does_not_undo_a_durable_record(
    tmp_path: Path, disk: FaultyFiles
) -> None:
    with SegmentLog(tmp_path, mark=True, files=disk) as log:
        disk.room = 8 + len(b"first")
        log.append([b"first"])
        disk.room = None
        log.append([b"last"])
    assert list(read_log(tmp_path)) == [b"first", b"last"]


def test_a_log_on_a_full_file_system_goes_on_when_there_is_room(small_disk: Path) -> None:
    stored = []
    with SegmentLog(small_disk / "log", mark=True) as log:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(40_000))
        with pytest.raises(StorageError, match="No space left"):
            for i in range(100):
                log.append([b"%d" % i * 1000])
                stored.append(b"%d" % i * 1000)
        assert list(read_log(log.path.parent)) == stored
        ballast.unlink()
        log.append([b"last"])
    assert stored
    assert list(read_log(log.path.parent)) == [*stored, b"last"]


def test_a_read_only_file_system_is_named_and_can_be_read(small_disk: Path) -> None:
    with SegmentLog(small_disk / "log", mark=True) as log:
        log.append(RECORDS)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"disk/log.*Read-only file system"):
        SegmentLog(small_disk / "log", mark=True)
    assert list(read_log(small_disk / "log")) == RECORDS


def test_a_log_that_was_deleted_under_its_writer_acknowledges_nothing(tmp_path: Path) -> None:
    with SegmentLog(tmp_path / "log", mark=True) as log:
        log.append([b"first"])
        shutil.rmtree(tmp_path / "log")
        for _ in range(2):
            with pytest.raises(StorageError, match=r"000001\.log: it was deleted while in use"):
                log.append([b"second"])


@pytest.mark.parametrize("record", [b"", b"x" * (256 * 1024 * 1024 + 1)], ids=["empty", "huge"])
def test_a_record_that_could_not_be_read_back_is_refused(tmp_path: Path, record: bytes) -> None:
    with SegmentLog(tmp_path) as log:
        with pytest.raises(StorageError, match=f"{len(record)} bytes"):
            log.append([b"first", record])
        log.append([b"last"])
    assert list(read_log(tmp_path)) == [b"last"]


def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, mark=True)
    log.close()
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.append([b"late"])


@pytest.mark.parametrize("left", range(4))
def test_too_few_file_handles_are_named_and_none_leaks(
    tmp_path: Path, without_handles: Callable[[int], AbstractContextManager[None]], left: int
) -> None:
    with without_handles(left):
        for _ in range(3):  # a handle that leaked would be missing the next time
            try:
                SegmentLog(tmp_path, mark=True).close()
            except StorageError as e:
                assert left < 3
                assert "too many open files" in str(e) and "ulimit -n" in str(e)
            else:
                assert left == 3
    assert list(read_log(tmp_path)) == []


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for folder in (blocker, blocker / "log", blocker / "a" / "log"):
        with pytest.raises(StorageError, match=f"{blocker} is a file, not a folder"):
            SegmentLog(folder)
    for folder in (link, link / "log"):
        with pytest.raises(StorageError, match=f"{link} is a link to .*gone, which does not exist"):
            SegmentLog(folder)
    for folder, named in ((blocker, "a file"), (link, "a link")):
        with pytest.raises(StorageError, match=named):
            list(read_log(folder))


def test_a_folder_without_permission_is_named_and_not_empty(without_rights: Path) -> None:
    for use in (SegmentLog, read_log, segments):
        with pytest.raises(StorageError, match=f"{without_rights}.*Permission denied"):
            list(use(without_rights))  # type: ignore[call-overload]


def test_other_files_in_the_folder_are_not_segments(tmp_path: Path) -> None:
    for name in ("1 copy.log", "000001.log.bak", "old.log"):
        (tmp_path / name).write_bytes(b"anything")
    with SegmentLog(tmp_path) as log:
        log.append(RECORDS)
    assert log.path.name == "000001.log"
    assert list(read_log(tmp_path)) == RECORDS
    assert list(read_log(tmp_path / "nothing here")) == []
