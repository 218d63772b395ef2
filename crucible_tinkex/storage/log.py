"""An append-only log of framed records in numbered segments: the one durability mechanism.

The registry's journal and the event log's write-ahead log both are one. Each opening writes a
segment of its own, `folder/NNNNNN.log`; an older file is never changed again, but for `goes_on`.
Guarantees:

- `append` returns after fsync. One that fails leaves nothing behind, or the segment takes no more:
  no record is ever written after one that may be torn, or after an fsync that failed (the page
  cache then claims more than the disk has).
- A record is read back whole or not at all. A torn tail (the process died in mid-write) is dropped
  on reading; damage anywhere else raises `CorruptLogError` with file and offset.
- With `mark=True` a lost tail is told from a torn one (`mark`): an acknowledged record that is gone
  raises `CorruptLogError`, unless a power cut took the newest marks with it.
- With `fenced=True` an older writer is stopped where the lock is lost. The newer one creates its
  segment, then takes the older one's length (`previous`), which it records; the older one looks for
  a newer segment before each write and again after fsync. So what it acknowledges lies within that
  length, and readers ignore what it writes beyond it (`read_segment(limit=...)`). Where a mount
  caches that a file is missing (NFS), the older writer notices late by as much.

With `goes_on=True` an opening writes on in the newest segment, where that is exactly as long as its
mark: so a log that is opened for every record does not have a file for each. A segment of which
more is there than was acknowledged (its writer died in mid-write, or could not cut it back), and a
long one, is left as ever.

Not for: object stores; two writers that both should go on (`Lock`).
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from crucible_tinkex.errors import CorruptLogError, StaleEpochError, StorageError
from crucible_tinkex.storage.files import (
    SYSTEM,
    Files,
    fsync_folder,
    make_folder,
    reason,
    storage_errors,
    write_all,
)
from crucible_tinkex.storage.mark import MARK, Mark, marked_length, marked_lengths

_FRAME = struct.Struct("<II")  # payload length in bytes, CRC-32 of the payload
MAX_RECORD_BYTES = 256 * 1024 * 1024
LONG_BYTES = 16 * 1024 * 1024
"""A segment is read as a whole, so no opening writes on in one that is longer."""
_SEGMENT = re.compile(r"[0-9]+\.log")


class SegmentLog:
    """The writer of one new segment; see the module for its guarantees. One thread."""

    def __init__(
        self,
        folder: Path,
        *,
        mark: bool = False,
        fenced: bool = False,
        goes_on: bool = False,
        files: Files = SYSTEM,
    ) -> None:
        """`goes_on`: needs the mark, and that nobody else writes meanwhile (`Lock`)."""
        self._files = files
        self._fenced = fenced
        self._trusted = True
        self._refusal: str | None = None
        make_folder(folder)
        older = segments(folder)
        newest = older[-1] if mark and goes_on and older else None
        self.path, self._fd, self._size = (newest and _whole(newest)) or _create_after(
            folder, older
        )
        self._next = _segment_path(folder, segment_number(self.path) + 1)
        self._mark: Mark | None = None
        try:
            if mark:
                self._mark = Mark(folder, segment_number(self.path), files)
            with storage_errors(folder):
                fsync_folder(folder)
            self.previous = _settle_before(self.path, files)
            """Number and length in bytes of the newest older segment; those bytes are durable."""
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[bytes]) -> None:
        """Write `records` in order and fsync once; none may be empty.

        Raises `StorageError`: nothing of `records` is acknowledged, and the caller may try again,
        which is refused if this segment cannot be trusted any more. Raises `StaleEpochError` if the
        log is fenced and a newer run has opened it.
        """
        frames = b"".join(map(_frame, records))
        if self._fenced:
            self.check_is_newest()
        if self._refusal:
            raise StorageError(f"{self.path} takes no more records: {self._refusal}")
        self._refusal = "an append to it broke off"  # until it is whole, or gone
        with storage_errors(self.path):
            try:
                write_all(self._files, self._fd, frames, self._size)
                self._sync()
            except BaseException:
                self._cut_back()
                raise
        if self._fenced:
            self.check_is_newest()
        self._size += len(frames)
        self._refusal = None
        if self._mark:
            self._mark.note(self._size)

    def check_is_newest(self) -> None:
        """Raises `StaleEpochError` if a newer segment exists. Costs one stat."""
        if self._is_overtaken():
            raise StaleEpochError(
                f"a newer run owns this sweep: it writes {self._next}, this one wrote {self.path}"
            )

    def _is_overtaken(self) -> bool:
        with storage_errors(self._next):
            try:
                os.stat(self._next)
            except FileNotFoundError:
                return False
        return True

    def _sync(self) -> None:
        try:
            self._files.fsync(self._fd)
        except OSError:
            self._trusted = False
            raise
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "it was deleted while in use")

    def _cut_back(self) -> None:
        """Take away what an append left; not from under a newer writer, who has measured it."""
        if self._fenced and self._is_overtaken():
            return
        try:
            self._files.ftruncate(self._fd, self._size)
        except OSError as e:
            self._refusal = f"it could not be cut back after an append failed: {reason(e)}"
        else:
            self._refusal = None if self._trusted else "an fsync of it failed"

    def close(self) -> None:
        """No more appends; closing twice is harmless."""
        fd, self._fd = self._fd, -1
        mark, self._mark = self._mark, None
        self._refusal = "it is closed"
        if mark:
            mark.close()
        if fd >= 0:
            with storage_errors(self.path):
                os.close(fd)

    def __enter__(self) -> SegmentLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _frame(record: bytes) -> bytes:
    """An empty record would look like blocks that were never filled, so there is none."""
    if not 0 < len(record) <= MAX_RECORD_BYTES:
        raise StorageError(
            f"a record of {len(record)} bytes cannot be stored: 1 to {MAX_RECORD_BYTES} are allowed"
        )
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


def _whole(path: Path) -> tuple[Path, int, int] | None:
    """A segment to write on in, and its length; None where it may not be."""
    marked = marked_length(path.parent, segment_number(path))
    with storage_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if marked == os.fstat(fd).st_size < LONG_BYTES:
            return path, fd, marked
        os.close(fd)
    return None


def _create_after(folder: Path, older: Sequence[Path]) -> tuple[Path, int, int]:
    """A new, empty segment with the next number that nobody else takes first."""
    number = segment_number(older[-1]) if older else 0
    while True:
        number += 1
        path = _segment_path(folder, number)
        with storage_errors(path):
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                return path, os.open(path, flags, 0o644), 0
            except FileExistsError:
                continue


def _settle_before(path: Path, files: Files) -> tuple[int, int] | None:
    """Number and size of the newest segment before `path`, once its bytes are durable.

    Its writer may have died between write and fsync; what is built on those bytes must not be lost
    with a power cut after all.
    """
    number = segment_number(path)
    older = [p for p in segments(path.parent) if segment_number(p) < number]
    if not older:
        return None
    with storage_errors(older[-1]):
        fd = os.open(older[-1], os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            files.fsync(fd)
        finally:
            os.close(fd)
    return segment_number(older[-1]), size


def _segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.log"


def segments(folder: Path) -> list[Path]:
    """The log's segment files, oldest first; none if there is no folder.

    Raises `CorruptLogError` if one that is known to hold records (`mark`) is missing.
    """
    with storage_errors(folder):
        try:
            marked = marked_lengths(folder)
            names = os.listdir(folder)
        except FileNotFoundError:
            if folder.is_symlink():
                raise
            return []
    found = {int(name[:-4]): folder / name for name in names if _SEGMENT.fullmatch(name)}
    if lost := sorted(marked.keys() - found.keys()):
        raise CorruptLogError(
            f"{_segment_path(folder, lost[0])} is missing, {marked[lost[0]]} bytes were written "
            f"to it; {_restore(folder)}"
        )
    return [found[number] for number in sorted(found)]


def segment_number(path: Path) -> int:
    return int(path.stem)


def read_log(folder: Path) -> Iterator[bytes]:
    """Every record of the log, oldest first. Safe while another process appends."""
    for path in segments(folder):
        yield from read_segment(path)


def read_segment(
    path: Path, limit: int | None = None, begin: int = 0
) -> Generator[bytes, None, int]:
    """The records of one segment from byte `begin` on, or those of them in its first `limit` bytes;
    returns where a later reading may begin.

    Raises `CorruptLogError` if it is shorter than `limit` or than its mark, or damaged; a torn tail
    beyond the mark is no damage.
    """
    marked = marked_length(path.parent, segment_number(path))  # first: the file only grows
    with storage_errors(path), path.open("rb") as file:
        file.seek(begin)
        data = file.read()
        size = os.fstat(file.fileno()).st_size if begin else len(data)
    copy = "restore it from a copy"
    for needed, advice in ((marked, _restore(path.parent)), (limit or 0, copy), (begin, copy)):
        if size < needed:
            raise CorruptLogError(
                f"{path} has lost its end: it has {size} bytes of {needed}; {advice}"
            )
    stop = begin + len(data) if limit is None else limit
    end = yield from _records(path, data[: max(stop, marked) - begin], begin, stop)
    if end < min(stop, marked):
        raise CorruptLogError(
            f"{path} is damaged at byte {end}: no whole record begins there, although {marked} "
            f"bytes were written; {_restore(path.parent)}"
        )
    return end


def _records(path: Path, data: bytes, begin: int, stop: int) -> Generator[bytes, None, int]:
    """The payloads that end before `stop` or a torn tail, of which it returns the first byte.
    `begin`: where `data` begins in the file."""
    offset = 0
    while offset + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, offset)
        start = offset + _FRAME.size
        payload = data[start : start + length]
        if length == 0 and not any(data[offset:]):
            break  # blocks that the file system allocated but never filled
        if not 0 < length <= MAX_RECORD_BYTES or (
            len(payload) == length and zlib.crc32(payload) != crc
        ):
            raise CorruptLogError(
                f"{path} is damaged at byte {begin + offset}; restore it from a copy"
            )
        if len(payload) < length:
            break
        offset = start + length
        if begin + offset > stop:
            return stop
        yield payload
    return begin + offset


def _restore(folder: Path) -> str:
    return f"restore it from a copy, or delete {folder / MARK} to go on with what is left"
