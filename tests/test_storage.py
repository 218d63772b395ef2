"""The durable log: whole records or none, at every length and under every flipped bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_tinkex.errors import CorruptLogError, StorageError, SweepBusyError
from crucible_tinkex.storage import Lock, SegmentLog, is_locked, read_log, write_atomic

RECORDS = [b"one", b"", b"three" * 20]


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    with SegmentLog(tmp_path) as log:
        log.append(RECORDS[:2])
        log.append(RECORDS[2:])
    return log.path


def test_round_trip_over_several_openings(tmp_path: Path) -> None:
    for batch in (RECORDS, [b"later"]):
        with SegmentLog(tmp_path) as log:
            log.append(batch)
    assert list(read_log(tmp_path)) == [*RECORDS, b"later"]


def test_a_tail_torn_at_any_length_loses_only_what_was_not_whole(segment: Path) -> None:
    whole = segment.read_bytes()
    for length in range(len(whole)):
        segment.write_bytes(whole[:length])
        found = list(read_log(segment.parent))
        assert found == RECORDS[: len(found)]
        assert len(found) < len(RECORDS)


def test_unfilled_blocks_at_the_end_are_a_torn_tail(segment: Path) -> None:
    segment.write_bytes(segment.read_bytes() + bytes(4096))
    assert list(read_log(segment.parent)) == RECORDS


def test_a_flipped_bit_in_a_payload_is_found_and_named(segment: Path) -> None:
    whole = segment.read_bytes()
    payload_start = 8
    for bit in range(8):
        damaged = bytearray(whole)
        damaged[payload_start] ^= 1 << bit
        segment.write_bytes(bytes(damaged))
        with pytest.raises(CorruptLogError, match=f"{segment.name} is damaged at byte 0"):
            list(read_log(segment.parent))


def test_a_refused_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """A child with a file size limit appends until it is refused, then once more what fits."""
    code = f"""
import resource, signal
from pathlib import Path
from crucible_tinkex.storage import SegmentLog
from crucible_tinkex.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = SegmentLog(Path({str(tmp_path)!r}))
log.append([b"first"])
try:
    log.append([b"x" * 2000])
except StorageError:
    log.append([b"last"])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(read_log(tmp_path)) == [b"first", b"last"]


def test_lock_names_its_owner_and_is_freed_by_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = Lock(path)
    assert is_locked(path)
    with pytest.raises(SweepBusyError, match=f"process {os.getpid()}"):
        Lock(path, wait_s=0)
    lock.close()
    assert not is_locked(path)
    Lock(path, wait_s=0).close()
    code = "from pathlib import Path; from crucible_tinkex.storage import Lock; import os;"
    code += f"lock = Lock(Path({str(path)!r})); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not is_locked(path)


def test_write_atomic_replaces_and_cleans(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    write_atomic(path, b"1")
    write_atomic(path, b"2", mode=0o600)
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_an_unusable_folder_is_a_storage_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StorageError, match="file"):
        SegmentLog(blocker / "log")
