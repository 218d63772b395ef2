"""Durable files: atomic replacement, a lock of one owner, an append-only log of framed records.

`SegmentLog` is the one durability mechanism: the registry's journal and the event log's
write-ahead log both are one. Guarantees: `append` returns after fsync; a record is read back whole
or not at all; a torn tail (the process died in mid-write) is dropped on reading; damage anywhere
else raises `CorruptLogError` with file and offset. Each opening writes a segment of its own, so an
older file is never changed again. Not for: object stores, or two writers at once (`Lock`).
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from crucible_tinkex.errors import CorruptLogError, StorageError, SweepBusyError

_FRAME = struct.Struct("<II")  # payload length in bytes, CRC-32 of the payload
MAX_RECORD_BYTES = 256 * 1024 * 1024


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's refusals into `StorageError` that names the path."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"cannot use {path}: {e.strerror or e}") from e


def fsync_folder(path: Path) -> None:
    """Make a rename or creation inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`: readers see the old or the new file, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)


class Lock:
    """Exclusive ownership of a folder while the process lives (`flock`; freed when it dies)."""

    def __init__(self, path: Path, *, wait_s: float = 2.0) -> None:
        """Raises `SweepBusyError` that names the owner, if it does not let go within `wait_s`."""
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        while not _try_lock(self._fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
                os.close(self._fd)
                raise SweepBusyError(f"{path.parent} is in use by {owner or 'another process'}")
            time.sleep(0.05)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)

    def close(self) -> None:
        """Let go; closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether some live process owns the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class SegmentLog:
    """Append-only log of byte records in `folder/NNNNNN.log`; see the module for its guarantees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            numbers = [segment_number(p) for p in segments(folder)]
            self.path = folder / f"{max(numbers, default=0) + 1:06d}.log"
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
            fsync_folder(folder)
        self._size = 0

    def append(self, records: Sequence[bytes]) -> None:
        """Write `records` in order and fsync once. On failure nothing of them remains."""
        frames = b"".join(_FRAME.pack(len(r), zlib.crc32(r)) + r for r in records)
        try:
            self._write(frames)
            os.fsync(self._file.fileno())
        except OSError as e:
            os.ftruncate(self._file.fileno(), self._size)
            self._file.seek(self._size)
            raise StorageError(f"cannot append to {self.path}: {e.strerror or e}") from e
        self._size += len(frames)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SegmentLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def segments(folder: Path) -> list[Path]:
    """The log's segment files, oldest first."""
    return sorted(folder.glob("[0-9]*.log"), key=segment_number)


def segment_number(path: Path) -> int:
    return int(path.stem)


def read_log(folder: Path) -> Iterator[bytes]:
    """Every record of the log, oldest first. Safe while another process appends."""
    for path in segments(folder):
        yield from read_segment(path)


def read_segment(path: Path) -> Iterator[bytes]:
    """The records of one segment. Raises `CorruptLogError` unless the damage is a torn tail."""
    with storage_errors(path):
        data = path.read_bytes()
    offset = 0
    while offset < len(data):
        header_end = offset + _FRAME.size
        if header_end > len(data):
            return
        length, crc = _FRAME.unpack_from(data, offset)
        payload = data[header_end : header_end + length]
        if length > MAX_RECORD_BYTES or (len(payload) == length and zlib.crc32(payload) != crc):
            raise CorruptLogError(f"{path} is damaged at byte {offset}")
        if len(payload) < length:
            return
        if length == 0 and not any(data[offset:]):
            return  # blocks that the file system allocated but never filled
        yield payload
        offset = header_end + length
