"""Reading: at every length and under every flipped bit, a loss is named or was never promised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.storage import SegmentLog, read_log, read_segment, segments

RECORDS = [b"one", b"2", b"three" * 5]


@pytest.fixture(params=[False, True], ids=["no mark", "mark"])
def marked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def segment(tmp_path: Path, marked: bool) -> Path:
    with SegmentLog(tmp_path, mark=marked) as log:
        log.append(RECORDS[:2])
        log.append(RECORDS[2:])
    return log.path


def read_damaged(segment: Path, data: bytes) -> list[bytes] | str:
    segment.write_bytes(data)
    try:
        return list(read_log(segment.parent))
    except CorruptLogError as e:
        return str(e)


def test_no_truncation_passes_a_mark(segment: Path, marked: bool) -> None:
    whole = segment.read_bytes()
    for length in range(len(whole)):
        found = read_damaged(segment, whole[:length])
        if marked:
            assert f"{segment} has lost its end: it has {length} bytes of {len(whole)}" in found
            assert f"restore it from a copy, or delete {segment.parent / 'length'}" in found
        else:  # a torn tail loses only what was not whole
            assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)


def test_no_flipped_bit_passes_a_mark(segment: Path, marked: bool) -> None:
    whole = segment.read_bytes()
    silent = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        found = read_damaged(segment, bytes(damaged))
        if isinstance(found, str):
            assert f"{segment} is damaged at byte" in found
        else:  # a length that now points beyond the end: like a torn tail
            silent += 1
            assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)
    assert silent == 0 if marked else silent < 32 * len(RECORDS)


def test_no_flipped_bit_of_the_mark_passes(tmp_path: Path) -> None:
    with SegmentLog(tmp_path, mark=True) as log:
        log.append(RECORDS)
    mark = tmp_path / "length"
    whole = mark.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        mark.write_bytes(bytes(damaged))
        with pytest.raises(CorruptLogError, match=rf"{mark} is damaged in line 1; delete it"):
            list(read_log(tmp_path))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_marked_segment_that_is_gone_is_named(tmp_path: Path, lost: int) -> None:
    for record in RECORDS:
        with SegmentLog(tmp_path, mark=True) as log:
            log.append([record])
    gone = segments(tmp_path)[lost]
    gone.unlink()
    with pytest.raises(CorruptLogError, match=f"{gone} is missing, .* bytes were written"):
        list(read_log(tmp_path))


def test_every_segment_keeps_its_own_mark(tmp_path: Path) -> None:
    for record in RECORDS:
        with SegmentLog(tmp_path, mark=True) as log:
            log.append([record])
    for path in segments(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CorruptLogError, match=f"{path} has lost its end"):
            list(read_log(tmp_path))
        path.write_bytes(whole)
    assert list(read_log(tmp_path)) == RECORDS


def test_a_log_without_marks_or_with_some_is_read(tmp_path: Path) -> None:
    for record, mark in zip(RECORDS, (False, True, False), strict=True):
        with SegmentLog(tmp_path, mark=mark) as log:
            log.append([record])
    assert list(read_log(tmp_path)) == RECORDS
    (tmp_path / "length").unlink()
    assert list(read_log(tmp_path)) == RECORDS


def test_without_marks_segments_may_be_removed(tmp_path: Path) -> None:
    for record in RECORDS:
        with SegmentLog(tmp_path) as log:
            log.append([record])
    segments(tmp_path)[1].unlink()
    assert list(read_log(tmp_path)) == [RECORDS[0], RECORDS[2]]


def test_what_a_death_left_behind_the_mark_is_a_torn_tail(segment: Path) -> None:
    whole = segment.read_bytes()
    for tail in (bytes(4096), bytes(3), whole[:5], whole[:10]):
        assert read_damaged(segment, whole + tail) == RECORDS


def test_unfilled_blocks_before_other_records_are_damage(segment: Path) -> None:
    whole = segment.read_bytes()
    assert f"{segment} is damaged at byte 0" in read_damaged(segment, bytes(8) + whole)


def test_only_the_first_bytes_are_read_if_so_asked(segment: Path) -> None:
    ends = [0, 11, 20, 53]
    for limit in range(ends[-1] + 1):
        whole_records = sum(end <= limit for end in ends[1:])
        assert list(read_segment(segment, limit)) == RECORDS[:whole_records]
    with pytest.raises(CorruptLogError, match=f"{segment} has lost its end: it has 53 bytes of 54"):
        list(read_segment(segment, 54))


def test_a_segment_that_is_a_folder_or_a_dangling_link_is_named(tmp_path: Path) -> None:
    place = tmp_path / "000001.log"
    place.mkdir()
    with pytest.raises(Exception, match=f"{place}: Is a directory"):
        list(read_log(tmp_path))
    os.rmdir(place)
    place.symlink_to(tmp_path / "gone")
    with pytest.raises(Exception, match=f"{place} is a link to"):
        list(read_log(tmp_path))
