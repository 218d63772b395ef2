"""A lock of one owner on a folder: `flock` on a file that says who holds it.

Guarantees: freed when its process dies; an opening that fails holds nothing, so it can be tried
again. Not for: file systems that lose or refuse `flock` (some network mounts); there a log is
opened with `fenced=True`, and the older writer is stopped (`log`).
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from crucible_tinkex.errors import SweepBusyError
from crucible_tinkex.storage.files import SYSTEM, Files, make_folder, storage_errors, write_all


class Lock:
    """Exclusive ownership of a folder while the process lives."""

    def __init__(self, path: Path, *, wait_s: float = 2.0, files: Files = SYSTEM) -> None:
        """Raises `SweepBusyError` that names the owner if it does not let go within `wait_s`;
        `StorageError` if there can be no lock."""
        self._fd = -1
        make_folder(path.parent)
        with storage_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._wait(path, wait_s)
                owner = f"process {os.getpid()} on {os.uname().nodename}".encode()
                write_all(files, self._fd, owner, 0)
                files.ftruncate(self._fd, len(owner))
            except BaseException:
                self.close()
                raise

    def _wait(self, path: Path, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while not _try_lock(self._fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
                raise SweepBusyError(f"{path.parent} is in use by {owner or 'another process'}")
            time.sleep(0.05)

    def close(self) -> None:
        """Let go; closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether some live process owns the lock. Raises `StorageError` if that cannot be known."""
    with storage_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
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
