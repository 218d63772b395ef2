"""The lock: one owner, named; freed by death; what cannot be locked is said and leaks nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from faulty_files import FaultyFiles

from crucible_tinkex.errors import StorageError, SweepBusyError
from crucible_tinkex.storage import Lock, is_locked


def test_lock_names_its_owner_and_is_freed_by_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("a process with a very long name that held this lock some time ago" * 2)
    lock = Lock(path)
    assert is_locked(path)
    owner = f"process {os.getpid()} on {os.uname().nodename}"
    assert path.read_text() == owner
    with pytest.raises(SweepBusyError, match=f"{tmp_path} is in use by {owner}$"):
        Lock(path, wait_s=0)
    lock.close()
    assert not is_locked(path)
    Lock(path, wait_s=0).close()
    code = "from pathlib import Path; from crucible_tinkex.storage import Lock; import os;"
    code += f"lock = Lock(Path({str(path)!r})); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not is_locked(path)


@pytest.mark.parametrize("fault", ["write", "truncate", "interrupt"])
def test_an_opening_that_fails_holds_nothing(tmp_path: Path, disk: FaultyFiles, fault: str) -> None:
    path = tmp_path / "lock"
    if fault == "truncate":
        disk.ftruncate_errors = [errno.EROFS]
    else:
        disk.room = 3
    if fault == "interrupt":
        disk.room_error = KeyboardInterrupt()
    expected = KeyboardInterrupt if fault == "interrupt" else StorageError
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(expected, match=None if fault == "interrupt" else f"{path}"):
        Lock(path, wait_s=0, files=disk)
    assert len(os.listdir("/proc/self/fd")) == handles
    assert not is_locked(path)
    Lock(path, wait_s=0).close()


def test_a_full_file_system_is_named(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(64 * 1024))
    with pytest.raises(StorageError, match=r"disk/lock: No space left"):
        Lock(small_disk / "lock")
    (small_disk / "ballast").unlink()
    Lock(small_disk / "lock").close()


def test_a_read_only_file_system_is_named(small_disk: Path) -> None:
    Lock(small_disk / "lock").close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"disk/lock: Read-only file system"):
        Lock(small_disk / "lock")
    assert not is_locked(small_disk / "lock")


def test_too_few_file_handles_are_named(
    tmp_path: Path, without_handles: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "lock"
    with without_handles(0):
        for use in (Lock, is_locked):
            with pytest.raises(StorageError, match=r"too many open files.*ulimit -n"):
                use(path)
    Lock(path).close()


def test_a_folder_without_permission_is_named(without_rights: Path) -> None:
    for use in (Lock, is_locked):
        with pytest.raises(StorageError, match=f"{without_rights}/lock: Permission denied"):
            use(without_rights / "lock")


def test_a_lock_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError, match="lock: Is a directory"):
        Lock(tmp_path / "lock")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file is a file, not a folder"):
        Lock(tmp_path / "file" / "lock")
    assert not is_locked(tmp_path / "file" / "lock")
    assert not is_locked(tmp_path / "nothing" / "lock")
