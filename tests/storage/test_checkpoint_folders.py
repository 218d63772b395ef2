"""The embedded server's checkpoints on a disk that fails, and after a death at any point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crucible_tinkex.errors import StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.operations import LoraSpec
from crucible_tinkex.server.store import ADAPTER_FILE, Manifest, Store

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


@pytest.mark.parametrize("whole", [True, False], ids=["saved there", "saved nowhere"])
def test_a_folder_that_a_death_left_is_no_checkpoint(tmp_path: Path, whole: bool) -> None:
    """Died before the rename of a save, or after that of a delete: a hidden, complete folder."""
    store = Store(tmp_path)
    store.save(manifest(1), adapter())
    left = store.folder(PATH).with_name(f".{PATH.name}.0123")
    shutil.copytree(store.folder(PATH), left)
    text = json.loads((left / "manifest.json").read_text())
    (left / "manifest.json").write_text(json.dumps({**text, "steps": 2}))
    if not whole:
        shutil.rmtree(store.folder(PATH))
    again = Store(tmp_path)
    assert [m.steps for m in again.list()] == ([1] if whole else [])


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
