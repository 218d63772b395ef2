"""Adapters and snapshots of which some lie in memory and the rest on disk.

Guarantees: what comes back from disk is bit for bit what went there; only what has waited longest
goes, and only when `spill` is called, so nothing that a pass uses disappears under it; an item
that cannot be written stays in memory. The files belong to this process: they are no checkpoints,
and the next process removes them. Used by the engine's thread only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import storage_errors


class Sized(Protocol):
    @property
    def size_bytes(self) -> int:
        """May change."""


Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True, slots=True)
class Kind(Generic[Item]):
    """How items of one kind are put aside. `sketch` is what stays in memory and `load` needs."""

    sketch: Callable[[Item], Any]
    save: Callable[[Item, Path], None]
    load: Callable[[Path, Any], Item]


@dataclass(slots=True)
class _Live(Generic[Item]):
    item: Item
    used_s: float
    size_bytes: int
    """When it was measured last."""


class Residents(Generic[Item]):
    """Items by id."""

    def __init__(self, folder: Path, kind: Kind[Item], clock: Callable[[], float]) -> None:
        self._folder = folder
        self._kind = kind
        self._clock = clock
        self._live: OrderedDict[str, _Live[Item]] = OrderedDict()
        self._spilled: dict[str, tuple[Path, Any]] = {}
        self._count = 0
        self.size_bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._live or key in self._spilled

    def __len__(self) -> int:
        return len(self._live) + len(self._spilled)

    @property
    def spilled_count(self) -> int:
        return len(self._spilled)

    def __getitem__(self, key: str) -> Item:
        """Raises KeyError if there is none, `StorageError` if it cannot be read back."""
        live = self._live.get(key)
        if live is not None:
            live.used_s = self._clock()
            self._measure(live)
            self._live.move_to_end(key)
            return live.item
        path, sketch = self._spilled[key]
        item = self._kind.load(path, sketch)
        self[key] = item
        return item

    def get(self, key: str) -> Item | None:
        if key not in self:
            return None
        return self[key]

    def __setitem__(self, key: str, item: Item) -> None:
        self.drop(key)
        self._live[key] = _Live(item, self._clock(), item.size_bytes)
        self.size_bytes += item.size_bytes

    def measure(self) -> None:
        """Bring `size_bytes`, which is otherwise as of each item's last use, up to date."""
        for live in self._live.values():
            self._measure(live)

    def _measure(self, live: _Live[Item]) -> None:
        size_bytes = live.item.size_bytes
        self.size_bytes += size_bytes - live.size_bytes
        live.size_bytes = size_bytes

    def drop(self, key: str) -> None:
        """Forget the item; unknown ones are ignored."""
        live = self._live.pop(key, None)
        if live is not None:
            self.size_bytes -= live.size_bytes
        path, _ = self._spilled.pop(key, (None, None))
        if path is not None:
            path.unlink(missing_ok=True)

    def waited_since(self) -> float:
        """When the item that has waited longest in memory was used last; inf: there is none."""
        first = next(iter(self._live.values()), None)
        return float("inf") if first is None else first.used_s

    def spill_oldest(self) -> None:
        """Raises `StorageError`; the item then stays."""
        key, live = next(iter(self._live.items()))
        self._count += 1
        path = self._folder / f"{self._count}.safetensors"
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._kind.save(live.item, path)
            except StorageError:
                path.unlink(missing_ok=True)
                raise
        self._spilled[key] = (path, self._kind.sketch(live.item))
        del self._live[key]
        self.size_bytes -= live.size_bytes


def spill(pools: tuple[Residents[Any], ...], *, budget_bytes: int, older_than_s: float) -> None:
    """Put aside what was not used since `older_than_s`, and more until the budget is kept."""
    if sum(p.size_bytes for p in pools) > budget_bytes:
        for pool in pools:
            pool.measure()
    while True:
        pool = min(pools, key=Residents.waited_since)
        waited_since = pool.waited_since()
        is_over = sum(p.size_bytes for p in pools) > budget_bytes
        if waited_since == float("inf") or not (is_over or waited_since < older_than_s):
            return
        pool.spill_oldest()


def spill_folder(data_dir: Path) -> Path:
    """A new folder for this process; those of dead processes are removed."""
    root = data_dir / "spill"
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for folder in root.iterdir():
            if not _is_alive(folder.name.partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
