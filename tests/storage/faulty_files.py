"""A disk that fails on demand: the `Files` port over the real system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


class FaultyFiles:
    """Passes on to the system until it is told to fail; remembers what an fsync made durable."""

    def __init__(self) -> None:
        self.room: int | None = None
        """Bytes by which files may still grow, then `room_error`."""
        self.room_error: BaseException = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync_errors: list[int] = []
        self.ftruncate_errors: list[int] = []
        self.after_fsync: Callable[[], object] = lambda: None
        self.fsyncs = 0
        self.durable: dict[Path, bytes] = {}
        self.versions: dict[Path, list[bytes]] = {}

    def pwrite(self, fd: int, data: memoryview, offset: int, /) -> int:
        if self.room is not None:
            growth = max(0, offset + len(data) - os.fstat(fd).st_size)
            if growth and self.room == 0:
                raise self.room_error
            data = data[: len(data) - max(0, growth - self.room)]
            self.room -= min(growth, self.room)
        written = os.pwrite(fd, data, offset)
        path = _path(fd)
        self.versions.setdefault(path, [b""]).append(path.read_bytes())
        return written

    def fsync(self, fd: int, /) -> None:
        if self.fsync_errors:
            _fail(self.fsync_errors)
        os.fsync(fd)
        self.fsyncs += 1
        self.durable[_path(fd)] = _path(fd).read_bytes()
        self.after_fsync()

    def ftruncate(self, fd: int, length: int, /) -> None:
        if self.ftruncate_errors:
            _fail(self.ftruncate_errors)
        os.ftruncate(fd, length)


def _fail(errors: list[int]) -> None:
    number = errors.pop(0)
    raise OSError(number, os.strerror(number))


def _path(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))
