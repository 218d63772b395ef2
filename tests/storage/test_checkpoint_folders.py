"""The embedded server's checkpoints on a disk that fails, and after a death at any point."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crucible_tinkex.errors import RequestRejectedError, StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.operations import LoraSpec
from crucible_tinkex.server.store import store as store_module
from crucible_tinkex.server.store.store import ADAPTER_FILE, Manifest, Store

PATH = TinkerPath("run", "weights", "one")


def manifest(steps: int = 0) -> Manifest:
    created = datetime.now(UTC).isoformat()
    return Manifest(
        str(PATH), "base", LoraSpec(rank=4, seed=0), steps, optimizer=False, created=created
    )


def adapter(data: bytes = b"adapter") -> Callable[[Path], object]:
    return lambda work: (work / ADAPTER_FILE).write_bytes(data)


def files(store: Store) -> list[str]:
    return sorted(str(p.relative_to(store.data_dir)) for p in store.data_dir.rglob("*.*"))


def test_a_full_disk_keeps_the_checkpoint_that_is_there(small_disk: Path) -> None:
    store = Store(small_disk)
    store.save(manifest(1), adapter())
    before = files(store)
    with pytest.raises(StorageError, match="No space left"):
        store.save(manifest(2), adapter(bytes(100_000)), overwrite=True)
    (small_disk / "ballast").write_bytes(bytes(48_000))
    for _ in range(3):
        try:
            store.update(PATH, user_metadata={"note": "x" * 9_000})
        except StorageError:
            break
    else:
        pytest.fail("the disk was not full")
    (small_disk / "ballast").unlink()
    assert files(store) == before
    again = Store(small_disk)
    assert again.info(PATH).steps == 1
    assert (again.folder(PATH) / ADAPTER_FILE).read_bytes() == b"adapter"


class Died(BaseException):
    """The process ends here."""


class Disk:
    """Renames that were not made durable by a sync of their folder can be lost.

    The process dies at the call of this number, among renames and removals."""

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int) -> None:
        self._calls = 0
        self._dies_at = dies_at
        self._unsynced: list[tuple[Path, Path]] = []
        rename, rmtree, fsync = os.rename, shutil.rmtree, store_module.fsync_folder

        def renamed(source: Path, target: Path) -> None:
            self._call()
            rename(source, target)
            self._unsynced.append((source, target))

        def removed(folder: Path, **options: bool) -> None:
            if folder.name.startswith(".") and folder.exists():
                self._call()
            rmtree(folder, **options)  # type: ignore[arg-type]

        def synced(folder: Path) -> None:
            fsync(folder)
            self._unsynced = [r for r in self._unsynced if r[1].parent != folder]

        patch.setattr(os, "rename", renamed)
        patch.setattr(shutil, "rmtree", removed)
        patch.setattr(store_module, "fsync_folder", synced)

    def _call(self) -> None:
        self._calls += 1
        if self._calls >= self._dies_at:
            raise Died

    def lose(self) -> None:
        """What the power's loss takes back. Call it after the patches are undone."""
        for source, target in reversed(self._unsynced):
            if target.exists():
                os.rename(target, source)


def died(store: Store, act: Callable[[], object], dies_at: int, *, power: bool) -> bool:
    """Whether `act` got that far."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, dies_at)
        try:
            act()
            done = True
        except Died:
            done = False
    if power:
        disk.lose()
    return not done


def hidden(store: Store) -> list[Path]:
    return list((store.data_dir / "checkpoints").rglob(".*"))


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("dies_at", range(1, 6))
def test_an_overwrite_that_dies_keeps_one_of_the_two(
    tmp_path: Path, dies_at: int, power: bool
) -> None:
    store = Store(tmp_path)
    store.save(manifest(1), adapter(b"one"))
    dead = died(
        store,
        lambda: store.save(manifest(2), adapter(b"two"), overwrite=True),
        dies_at,
        power=power,
    )
    assert dead is (dies_at < 5) or dies_at in (3, 4)
    again = Store(tmp_path)
    (found,) = again.list()
    data = (again.folder(PATH) / ADAPTER_FILE).read_bytes()
    assert (found.steps, data) in ([(1, b"one"), (2, b"two")] if dead else [(2, b"two")])
    assert hidden(again) == []


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("dies_at", range(1, 4))
def test_what_was_deleted_stays_deleted(tmp_path: Path, dies_at: int, power: bool) -> None:
    store = Store(tmp_path)
    store.save(manifest(1), adapter())
    dead = died(store, lambda: store.delete(PATH), dies_at, power=power)
    assert dead is (dies_at < 3)
    again = Store(tmp_path)
    assert len(again.list()) == (dies_at == 1)
    assert hidden(again) == []


def test_a_delete_that_fails_is_no_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(manifest(1), adapter())

    def fails(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(StorageError, match="Input/output"):
            store.delete(PATH)
    assert store.info(PATH).steps == 1
    store.delete(PATH)
    with pytest.raises(RequestRejectedError):
        store.info(PATH)


def test_an_overwrite_whose_rename_fails_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rename = Store(tmp_path), os.rename
    store.save(manifest(1), adapter(b"one"))
    calls = []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", second_fails)
        with pytest.raises(StorageError, match="Input/output"):
            store.save(manifest(2), adapter(b"two"), overwrite=True)
    assert (store.folder(PATH) / ADAPTER_FILE).read_bytes() == b"one"
    assert hidden(store) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\0" * 100, '{"spec": 1}', '{"tinker_path": "x"}'], ids=range(6)
)
def test_an_unreadable_manifest_is_set_aside(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.save(manifest(1), adapter())
    broken = store.folder(PATH).with_name("two")
    shutil.copytree(store.folder(PATH), broken)
    (broken / "manifest.json").write_text(text)
    again = Store(tmp_path)
    assert [m.steps for m in again.list()] == [1]
    (kept,) = (tmp_path / "damaged").iterdir()
    assert (kept / ADAPTER_FILE).read_bytes() == b"adapter" and not broken.exists()
    assert "two" in caplog.text and str(kept) in caplog.text
    again.save(replace(manifest(3), tinker_path="tinker://run/weights/two"), adapter())


@pytest.mark.parametrize("text", ["", "{", "\0" * 100], ids=["empty", "cut", "zeros"])
def test_a_half_written_manifest_of_a_dead_save_does_not_stop_the_server(
    tmp_path: Path, text: str
) -> None:
    store = Store(tmp_path)
    store.save(manifest(1), adapter())
    left = store.folder(PATH).with_name(".two.0123")
    left.mkdir()
    (left / "manifest.json").write_text(text)
    assert [m.steps for m in Store(tmp_path).list()] == [1]


def test_what_was_saved_anew_is_not_purged_with_what_expired(tmp_path: Path) -> None:
    """Saved while the files of another one that has expired are removed."""
    store = Store(tmp_path)
    other = replace(manifest(1), tinker_path="tinker://run/weights/other")
    past = "2026-01-01T00:00:00+00:00"
    store.save(replace(other, expires=past), adapter())
    store.save(replace(manifest(1), expires=past), adapter())
    rmtree = shutil.rmtree

    def meanwhile(folder: Path, **options: bool) -> None:
        rmtree(folder, **options)  # type: ignore[arg-type]
        if ".gone." in folder.name and "other" in folder.name:
            store.save(manifest(2), adapter(), overwrite=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", meanwhile)
        store.purge()
    assert [m.steps for m in store.list()] == [2]
