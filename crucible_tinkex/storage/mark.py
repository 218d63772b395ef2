"""How long each segment of a log is known to be: the file `length` beside the segments.

A torn tail looks like the end of a log, and so does a tail that was lost; the mark tells them
apart. It is a line of fixed width for each segment, at a place that follows from its number, so
two writers never overwrite each other's. Guarantee: no false alarm. A line is written after the
fsync of what it counts and is itself never fsynced, so whichever of its versions survives a power
cut, it is at most too low; a line that is missing claims nothing, as in a log of an older version.
A line never crosses a block, so a full disk cannot tear one that is whole. Not for: logs whose
segments are removed again (the write-ahead log), which do without.
"""

from __future__ import annotations

import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.storage.files import Files, storage_errors, write_all

MARK = "length"
_WIDTH = 32  # divides every block size
_LOOKS = 5  # a reader may meet half of a line that is being written


class Mark:
    """The writer's hold on the line of one segment."""

    def __init__(self, folder: Path, number: int, files: Files) -> None:
        self._files = files
        self._number = number
        path = folder / MARK
        with storage_errors(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def note(self, length: int) -> None:
        """`length` bytes of the segment are durable. A refusal leaves the mark too low, no more."""
        with suppress(OSError):
            offset = (self._number - 1) * _WIDTH
            write_all(self._files, self._fd, _line(self._number, length), offset)

    def close(self) -> None:
        os.close(self._fd)


def marked_length(folder: Path, number: int) -> int:
    """Bytes of the segment that are known to have been durable; 0 if nothing is known."""
    return _read(folder, first=number, count=1).get(number, 0)


def marked_lengths(folder: Path) -> dict[int, int]:
    """The same for every segment that has a line. Raises `CorruptLogError` for a damaged line."""
    return _read(folder, first=1, count=None)


def _line(number: int, length: int) -> bytes:
    text = f"{number:08d} {length:013d}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _read(folder: Path, *, first: int, count: int | None) -> dict[int, int]:
    path = folder / MARK
    for _ in range(_LOOKS):
        found = [_parse(n, line) for n, line in _lines(path, first, count)]
        if None not in found:
            return {first + i: length for i, length in enumerate(found) if length}
        time.sleep(0.001)
    raise CorruptLogError(
        f"{path} is damaged in line {first + found.index(None)}; "
        "delete it to go on without this check of the log's length"
    )


def _lines(path: Path, first: int, count: int | None) -> list[tuple[int, bytes]]:
    with storage_errors(path):
        try:
            with open(path, "rb") as f:
                f.seek((first - 1) * _WIDTH)
                data = f.read(-1 if count is None else count * _WIDTH)
        except FileNotFoundError:
            return []
    starts = range(0, len(data), _WIDTH)
    return [(first + i, data[at : at + _WIDTH]) for i, at in enumerate(starts)]


def _parse(number: int, line: bytes) -> int | None:
    """The length; 0 for a line that was never written to its end; None for a damaged one."""
    if len(line) < _WIDTH or line[-1] == 0:
        return 0
    try:
        length = int(line[9:22])
    except ValueError:
        return None
    return length if line == _line(number, length) else None
