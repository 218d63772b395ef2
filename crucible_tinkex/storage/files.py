"""Files and folders made durable, and the system's refusals told so that a user can act.

Guarantees: `write_atomic` leaves the old file or the new one, never half of one and nothing beside
them; `make_folder` and `write_atomic` return after fsync, also of the folders that they created;
whatever the system refuses becomes a `StorageError` that names the path, the reason and, where
there is one, the fix. Not for: object stores.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from crucible_tinkex.errors import StorageError


class Files(Protocol):
    """What writing needs of the system; the module `os` is one. The port through which tests
    bring a full disk, a failing fsync or a power cut."""

    def pwrite(self, fd: int, data: memoryview, offset: int, /) -> int: ...

    def fsync(self, fd: int, /) -> None: ...

    def ftruncate(self, fd: int, length: int, /) -> None: ...


SYSTEM: Files = os


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's refusals into `StorageError` that names the path."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"cannot use {path}: {reason(e, path)}") from e


def reason(e: OSError, path: Path | None = None) -> str:
    """Why the system refused, and what helps where that is known."""
    match e.errno:
        case errno.EMFILE | errno.ENFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return (
                f"too many open files (this process may hold {limit}); "
                f"raise the limit with `ulimit -n {max(4096, 4 * limit)}` and start again"
            )
        case errno.ENOSPC | errno.EDQUOT:
            return f"{e.strerror}; free some space and go on"
        case errno.EEXIST | errno.ENOENT | errno.ENOTDIR:
            return (path and _in_the_way(path)) or str(e.strerror)
        case _:
            return e.strerror or str(e)


def _in_the_way(path: Path) -> str | None:
    """What stands where a folder on the way to `path` should be."""
    for place in reversed((path, *path.parents)):
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place} is a link to {os.readlink(place)}, which does not exist"
        if os.path.isfile(place):
            return f"{place} is a file, not a folder"
    return None


def make_folder(path: Path) -> None:
    """Make `path` a durable folder, with its parents. Raises `StorageError` if it cannot be one."""
    with storage_errors(path):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            fsync_folder(folder.parent)


def fsync_folder(path: Path) -> None:
    """Make a rename or creation inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; the system may take it in parts."""
    view = memoryview(data)
    while view:
        written = files.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_atomic(
    path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644, files: Files = SYSTEM
) -> None:
    """Replace `path` by `data`, or its pieces: readers see the old or the new file, also after a
    power cut."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        try:
            _write_new(temporary, [data] if isinstance(data, bytes) else data, mode, files)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def _write_new(path: Path, pieces: Iterable[bytes], mode: int, files: Files) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        offset = 0
        for piece in pieces:
            write_all(files, fd, piece, offset)
            offset += len(piece)
        files.fsync(fd)
    finally:
        os.close(fd)


def check_writable(folder: Path, *, need_bytes: int = 0) -> None:
    """Prove that `folder` takes durable files and has room, before anything is spent.

    Creates the folder. Raises `StorageError` that names what is in the way, or how much room there
    is and how much is needed.
    """
    make_folder(folder)
    probe = folder / f".check.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with storage_errors(folder):
        try:
            _write_new(probe, [bytes(4096)], 0o600, SYSTEM)
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise StorageError(
            f"{folder} has {_mb(free)} free and {_mb(need_bytes)} are needed; "
            "free some space or choose another storage"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
