"""The journal: versioned JSON records in a framed log, written by one run at a time.

Each opening writes a segment of its own, whose first record (`run`) names the run, its epoch and
how long the segment before it was. That one note does two things: what an older writer still adds
behind it is no part of the journal, and a segment that became shorter is noticed. So two writers
can never both be believed, also where the lock was lost (network file systems); the older one is
told by `StaleEpochError` at its next write.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import CorruptLogError, CrucibleError
from crucible_tinkex.storage import SegmentLog, read_segment, segment_number, segments

VERSION = 2


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every record, oldest first. Safe while a run appends. Raises `CorruptLogError`."""
    files = segments(folder)
    limits = dict(limit for limit in map(_follows, files) if limit)
    for path in files:
        for record in read_segment(path, limit=limits.get(segment_number(path))):
            yield parsed(record, path)


class JournalReader:
    """Follows a journal that another process writes: every `read` costs what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._segment, self._end = 0, 0

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The records since the last time, and whether they are all that the journal has: so at
        first, and where what was read before is no part of it any more. Raises
        `CorruptLogError`."""
        files = [p for p in segments(self._folder) if segment_number(p) >= self._segment]
        firsts = {p: _first(p) for p in files if segment_number(p) > self._segment}
        while files and files[-1] in firsts and firsts[files[-1]] is None:
            files.pop()  # the segment before it may still get a record that counts
        limits = dict(f["follows"] for f in firsts.values() if f and f.get("follows"))
        anew = not self._segment
        if not anew and not self._goes_on(files, limits):
            self._begin()
            return self.read()
        found: list[dict[str, Any]] = []
        for path in files:
            number = segment_number(path)
            begin = self._end if number == self._segment else 0
            records, self._end = _taken(path, limits.get(number), begin)
            self._segment = number
            found += records
        return found, anew

    def _goes_on(self, files: Sequence[Path], limits: Mapping[int, int]) -> bool:
        """Whether all that was read is still a part of the journal."""
        is_there = bool(files) and segment_number(files[0]) == self._segment
        return is_there and self._end <= limits.get(self._segment, self._end)


def _taken(path: Path, limit: int | None, begin: int) -> tuple[list[dict[str, Any]], int]:
    records, found = read_segment(path, limit, begin), []
    while True:
        try:
            found.append(parsed(next(records), path))
        except StopIteration as ended:
            return found, int(ended.value)


def _follows(path: Path) -> tuple[int, int] | None:
    """The number and the valid length of the segment before this one, as its first record says."""
    follows = (_first(path) or {}).get("follows")
    return (follows[0], follows[1]) if follows else None


def _first(path: Path) -> dict[str, Any] | None:
    return next((parsed(record, path) for record in read_segment(path)), None)


def parsed(record: bytes, path: Path) -> dict[str, Any]:
    """Raises `CorruptLogError`."""
    try:
        found: dict[str, Any] = json.loads(record)
    except ValueError as e:
        raise CorruptLogError(f"{path} holds a record that is not JSON: {e}") from e
    return found


class JournalWriter:
    """Appends records; calls that wait at the same time share one fsync."""

    def __init__(self, folder: Path) -> None:
        self._log = SegmentLog(folder, mark=True, fenced=True)
        self.follows = self._log.previous
        self._staged: list[bytes] = []
        self._written = 0
        self._failure: CrucibleError | None = None
        self._count = 0

    def stage(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take records that the next `flush` makes durable."""
        self._staged += [json.dumps(r).encode() for r in records]
        self._count += len(records)

    def write(self) -> None:
        """Make durable what is staged. After a failure nothing is ever written again: what was
        folded and could not be remembered must not go on."""
        if self._failure:
            raise self._failure
        batch, self._staged = self._staged, []
        try:
            if batch:
                self._log.append(batch)
        except CrucibleError as e:  # also of a newer run: those who share this write must hear it
            self._failure = e
            raise
        self._written += len(batch)

    async def flush(self) -> None:
        """Return when all that was staged before this call is durable. Gives way once, so that
        calls which are ready at the same time are written together."""
        wanted = self._count
        await asyncio.sleep(0)
        if self._written < wanted or self._failure:
            self.write()

    @property
    def written(self) -> int:
        """Records of this opening that are durable."""
        return self._written

    def close(self) -> None:
        self._log.close()
