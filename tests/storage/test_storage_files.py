"""Files: old or new, nothing left over; what a storage cannot take is said before it matters."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from faulty_files import FaultyFiles

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import check_writable, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_atomic_replaces_and_cleans(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    write_atomic(path, b"1")
    write_atomic(path, b"2", mode=0o600)
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path.parent) == ["file.json"]


@pytest.mark.parametrize("fault", ["write", "fsync", "interrupt"])
def test_a_failed_replacement_leaves_the_old_file_alone(
    tmp_path: Path, disk: FaultyFiles, fault: str
) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"old")
    if fault == "fsync":
        disk.fsync_errors = [errno.EIO]
    else:
        disk.room = 2
    if fault == "interrupt":
        disk.room_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else StorageError):
        write_atomic(path, b"new", files=disk)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.json"]


def test_pieces_come_whole_or_not_at_all(tmp_path: Path) -> None:
    def cut_short() -> Iterator[bytes]:
        yield b"ne"
        raise StorageError("the bucket is gone")

    path = tmp_path / "file.json"
    write_atomic(path, iter([b"o", b"", b"ld"]))
    with pytest.raises(StorageError, match="the bucket is gone"):
        write_atomic(path, cut_short())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.json"]


def test_a_full_file_system_keeps_the_old_file_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "file.json"
    write_atomic(path, b"old")
    with pytest.raises(StorageError, match=r"file\.json: No space left.*free some space"):
        write_atomic(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["file.json"]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file.json").mkdir()
    with pytest.raises(StorageError, match=r"file\.json: Is a directory"):
        write_atomic(tmp_path / "file.json", b"new")
    assert names(tmp_path) == ["file.json"]


def test_a_writable_storage_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", need_bytes=1)
    assert names(tmp_path / "a" / "b") == []


def test_too_little_room_is_said_in_numbers(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"disk has 0\.\d MB free and 1,000\.0 MB are needed"):
        check_writable(small_disk, need_bytes=10**9)
    (small_disk / "ballast").write_bytes(bytes(64 * 1024))
    with pytest.raises(StorageError, match=r"disk: No space left"):
        check_writable(small_disk)
    assert names(small_disk) == ["ballast"]


def test_a_read_only_storage_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in (small_disk, small_disk / "new"):
        with pytest.raises(StorageError, match=f"{folder}: Read-only file system"):
            check_writable(folder)


def test_a_storage_without_permission_is_named(without_rights: Path) -> None:
    for folder in (without_rights, without_rights / "new"):
        with pytest.raises(StorageError, match=f"{folder}: Permission denied"):
            check_writable(folder)


def test_a_storage_that_is_no_folder_is_named(tmp_path: Path) -> None:
    file, link, loop = tmp_path / "file", tmp_path / "link", tmp_path / "loop"
    file.write_text("")
    link.symlink_to("gone")
    loop.symlink_to(loop)
    for folder, named in (
        (file, f"{file} is a file, not a folder"),
        (file / "runs", f"{file} is a file, not a folder"),
        (link, f"{link} is a link to gone, which does not exist"),
        (link / "runs", f"{link} is a link to gone, which does not exist"),
        (loop, f"{loop} is a link to {loop}, which does not exist"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(StorageError, match=named):
            check_writable(folder)


def test_too_few_file_handles_are_named(
    tmp_path: Path, without_handles: Callable[[int], AbstractContextManager[None]]
) -> None:
    with without_handles(0):
        for use in (check_writable, lambda path: write_atomic(path / "file", b"")):
            with pytest.raises(StorageError, match=r"may hold \d+\); raise.*`ulimit -n \d+`"):
                use(tmp_path)
    assert os.listdir(tmp_path) == []
