"""Following a journal from outside: what each reading gives, and that it is the journal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.registry.journal import JournalReader, JournalWriter, read_records
from crucible_tinkex.storage import SegmentLog, segments
from crucible_tinkex.storage.mark import MARK


def numbered(number: int) -> dict[str, Any]:
    return {"type": "x", "n": number}


def append(writer: JournalWriter, *numbers: int) -> None:
    writer.stage([numbered(n) for n in numbers])
    writer.write()


def begin(folder: Path) -> JournalWriter:
    """As a run does."""
    writer = JournalWriter(folder)
    writer.stage([{"type": "run", "follows": writer.follows}])
    writer.write()
    return writer


def seen(found: tuple[list[dict[str, Any]], bool]) -> tuple[list[int], bool]:
    return [r["n"] for r in found[0] if r["type"] == "x"], found[1]


def test_each_reading_gives_what_is_new(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path)
    assert reader.read() == ([], True), "there is none yet"
    writer = begin(tmp_path)
    append(writer, 1, 2)
    assert seen(reader.read()) == ([1, 2], True)
    assert reader.read() == ([], False)
    append(writer, 3)
    assert seen(reader.read()) == ([3], False)
    writer.close()
    second = begin(tmp_path)
    append(second, 4)
    assert seen(reader.read()) == ([4], False)
    second.close()


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begin(tmp_path)
    append(writer, *range(5000))
    reader = JournalReader(tmp_path)
    reader.read()
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    append(writer, 5000)
    assert seen(reader.read()) == ([5000], False) and len(parsed) == 1
    writer.close()


def test_half_a_record_is_read_once_it_is_whole(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    append(writer, 1)
    writer.close()
    reader, [path] = JournalReader(tmp_path), segments(tmp_path)
    assert seen(reader.read()) == ([1], True)
    elsewhere = SegmentLog(tmp_path / "elsewhere")
    elsewhere.append([json.dumps(numbered(2)).encode()])
    frame = elsewhere.path.read_bytes()
    elsewhere.close()
    with path.open("ab") as file:
        for part, expected in ((frame[:9], []), (frame[9:], [2])):
            file.write(part)
            file.flush()
            assert seen(reader.read()) == (expected, False)


def test_a_segment_that_nobody_has_written_to_hides_nothing(tmp_path: Path) -> None:
    """A newer run has just begun; the older one's last record still counts."""
    older = begin(tmp_path)
    append(older, 1)
    reader = JournalReader(tmp_path)
    reader.read()
    newest = segments(tmp_path)[-1]
    empty = newest.with_name("000002.log")
    held = newest.read_bytes()
    empty.write_bytes(b"")
    assert reader.read() == ([], False)
    empty.unlink()
    append(older, 2)
    size = newest.stat().st_size
    assert size > len(held)
    older.close()
    newer = begin(tmp_path)
    append(newer, 3)
    assert seen(reader.read()) == ([2, 3], False)
    newer.close()


def test_what_an_older_run_added_too_late_is_taken_back(tmp_path: Path) -> None:
    older = begin(tmp_path)
    append(older, 1)
    counted = segments(tmp_path)[0].stat().st_size
    append(older, 9)  # after the newer run has measured it, before the reader sees that one
    older.close()
    reader = JournalReader(tmp_path)
    assert seen(reader.read()) == ([1, 9], True)
    newer = JournalWriter(tmp_path)
    newer.stage([{"type": "run", "follows": (1, counted)}, numbered(2)])
    newer.write()
    (tmp_path / MARK).unlink()
    assert seen(reader.read()) == ([1, 2], True), "all of it again"
    newer.close()


def test_a_journal_that_lost_its_end_is_named(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    append(writer, 1, 2)
    writer.close()
    reader = JournalReader(tmp_path)
    reader.read()
    [path] = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptLogError, match=path.name):
        reader.read()


def test_whenever_it_is_read_it_is_the_journal(tmp_path: Path) -> None:
    for life in range(20):
        folder, dice, number = tmp_path / str(life), random.Random(life), 0
        reader, mirror = JournalReader(folder), []
        for _ in range(dice.randrange(1, 6)):
            writer = begin(folder)
            for _ in range(dice.randrange(5)):
                append(writer, *range(number, number := number + dice.randrange(1, 4)))
                if dice.random() < 0.5:
                    records, is_all = reader.read()
                    mirror = records if is_all else mirror + records
            writer.close()
        records, is_all = reader.read()
        mirror = records if is_all else mirror + records
        assert mirror == list(read_records(folder))
