"""Checkpoints on disk: one folder each, written beside and renamed, with a manifest.

    <data_dir>/checkpoints/<run>/<kind>/<name>/manifest.json
                                              adapter.safetensors
                                              optimizer.safetensors   (kind `weights` only)

Guarantees, also if the process or the power ends at any point: a checkpoint is there whole or not
at all; one of the two is there after an overwrite; a deleted one stays deleted. A new `Store` on
the same folder finds all of them, sweeps what a death left, and sets aside, in `damaged/`, what it
cannot read; a name is never replaced unless `overwrite` is asked for. A run keeps all checkpoints
that have a name, and the last few for sampling that have none. Tensors are read and written by the
caller (`files`); this module imports no torch, so the app can list checkpoints without it.

Hidden folders beside the checkpoints are on their way: `.new.TOKEN.NAME` is being written,
`.old.TOKEN.NAME` was put aside for its successor, `.gone.TOKEN.NAME` is being deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crucible_tinkex.errors import (
    ConfigError,
    CrucibleError,
    RequestRejectedError,
    StorageError,
)
from crucible_tinkex.names import TinkerPath, base_name
from crucible_tinkex.server.operations import LoraSpec, damaged, refused
from crucible_tinkex.storage import fsync_folder, storage_errors, write_atomic

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MANIFEST_FILE = "manifest.json"
UNNAMED = "unnamed-"
"""Begins the names of checkpoints to which the client gave none."""
KEPT_UNNAMED = 8
"""Checkpoints for sampling without a name that a run keeps: the last ones."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is; the hashes are of its adapter and its optimizer file."""

    tinker_path: str
    base_model: str
    spec: LoraSpec
    steps: int
    optimizer: bool
    created: str
    expires: str | None = None
    sha256: str = ""
    optimizer_sha256: str = ""
    """Empty if there is no such file, or if it was written before these hashes were."""
    size_bytes: int = 0
    user_metadata: Mapping[str, str] | None = None

    @property
    def path(self) -> TinkerPath:
        return TinkerPath.parse(self.tinker_path)

    def expired(self) -> bool:
        return self.expires is not None and datetime.fromisoformat(self.expires) < datetime.now(UTC)


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Fields of other versions are passed over. Raises `DamagedCheckpointError`, or `StorageError`
    where the disk does not let it be read."""
    file = folder / MANIFEST_FILE
    try:
        with storage_errors(file):
            manifest = _MANIFEST.validate_json(file.read_bytes())
        manifest.path  # noqa: B018 - it is read, too
    except (ValidationError, ConfigError) as e:
        raise damaged(f"{file} is damaged: {type(e).__name__}: {e}") from e
    return replace(manifest, base_model=base_name(manifest.base_model))


def expiry(ttl_seconds: int | None) -> str | None:
    if ttl_seconds is None:
        return None
    return (datetime.now(UTC) + timedelta(seconds=ttl_seconds)).isoformat()


class Store:
    """All checkpoints below `data_dir`. One process; any thread."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._changing = threading.RLock()
        self._root = data_dir / "checkpoints"
        with storage_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            for left in self._root.glob("*/*/.*"):
                _sweep(left)
            self._found = {m.path: m for m in self._read()}

    def _read(self) -> Iterator[Manifest]:
        for file in list(self._root.glob("*/*/[!.]*/manifest.json")):
            try:
                manifest = read_manifest(file.parent)
            except CrucibleError as e:
                self._set_aside(file.parent, e)
            else:
                yield manifest

    def _set_aside(self, folder: Path, why: Exception) -> None:
        """What cannot be read stops nobody, and is not lost."""
        name = "-".join(folder.relative_to(self.data_dir).parts)
        target = self.data_dir / "damaged" / f"{uuid.uuid4().hex[:8]}-{name}"
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)
        _log.warning("%s cannot be read (%s); it was moved to %s", folder, why, target)

    def folder(self, path: TinkerPath) -> Path:
        return self._root / path.run_id.replace(":", "+") / path.kind / path.name

    def list(self, run_id: str | None = None) -> list[Manifest]:
        """Oldest first, without those that have expired."""
        found = [m for m in list(self._found.values()) if run_id in (None, m.path.run_id)]
        return sorted((m for m in found if not m.expired()), key=lambda m: m.created)

    def purge(self) -> None:
        """Delete what has expired."""
        self._discard(m for m in list(self._found.values()) if m.expired())

    def _discard(self, manifests: Iterable[Manifest]) -> None:
        for manifest in manifests:
            with self._changing:
                if self._found.get(manifest.path) is not manifest:
                    continue  # deleted, or saved anew
                try:
                    self.delete(manifest.path)
                except StorageError as e:
                    _log.warning("%s stays on disk: %s", manifest.path, e)

    def info(self, path: TinkerPath) -> Manifest:
        """Raises `RequestRejectedError` (404) if there is no such checkpoint."""
        manifest = self._found.get(path)
        if manifest is None or manifest.expired():
            raise _missing(path)
        return manifest

    def save(
        self, manifest: Manifest, write: Callable[[Path], None], *, overwrite: bool = False
    ) -> Manifest:
        """Publish what `write` puts into the folder that it is given."""
        path = manifest.path
        if path in self._found and not overwrite and not self._found[path].expired():
            raise refused(f"checkpoint {path} exists; choose another name or ask to overwrite")
        target = self.folder(path)
        work = _hidden(target, "new")
        with storage_errors(target):
            work.mkdir(parents=True)
            try:
                write(work)
                done = _complete(manifest, work)
                with self._changing:
                    _publish(work, target)
                    self._found[path] = done
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._forget_unnamed(path.run_id)
        return done

    def _forget_unnamed(self, run_id: str) -> None:
        """A loop that saves at every step and never deletes must not fill the disk."""
        unnamed = [m for m in self.list(run_id) if m.path.name.startswith(UNNAMED)]
        self._discard([m for m in unnamed if m.path.kind == "sampler_weights"][:-KEPT_UNNAMED])

    def update(self, path: TinkerPath, **changes: Any) -> Manifest:
        """Change fields such as `expires`. Raises `RequestRejectedError` (404)."""
        with self._changing:
            manifest = replace(self.info(path), **changes)
            text = json.dumps(asdict(manifest), indent=1)
            write_atomic(self.folder(path) / MANIFEST_FILE, text.encode())
            self._found[path] = manifest
        return manifest

    def delete(self, path: TinkerPath) -> None:
        """Raises `RequestRejectedError` (404) if there is no such checkpoint."""
        folder, gone = self.folder(path), _hidden(self.folder(path), "gone")
        with self._changing, storage_errors(folder):
            if path not in self._found:
                raise _missing(path)
            if folder.exists():
                os.rename(folder, gone)
                fsync_folder(folder.parent)
            del self._found[path]
        shutil.rmtree(gone, ignore_errors=True)


def _missing(path: TinkerPath) -> RequestRejectedError:
    return refused(f"there is no checkpoint {path}", 404)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_hash(path: Path, sha256: str) -> None:
    """Raises `DamagedCheckpointError` if the file is not the one that was saved, or is gone.

    An empty hash, of a checkpoint older than its hashes, is not compared."""
    with storage_errors(path):
        if not path.is_file():
            raise damaged(f"the checkpoint is damaged: {path} is gone")
        if sha256 and file_hash(path) != sha256:
            raise damaged(f"{path} is damaged: it is not what was saved")


def _complete(manifest: Manifest, work: Path) -> Manifest:
    """Add hash and size, write the manifest, and make every file durable."""
    size_bytes = sum(p.stat().st_size for p in work.iterdir())
    optimizer = work / OPTIMIZER_FILE
    done = replace(
        manifest,
        size_bytes=size_bytes,
        sha256=file_hash(work / ADAPTER_FILE),
        optimizer_sha256=file_hash(optimizer) if optimizer.exists() else "",
    )
    (work / MANIFEST_FILE).write_text(json.dumps(asdict(done), indent=1))
    for file in work.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    fsync_folder(work)
    return done


def _publish(work: Path, target: Path) -> None:
    """What stood there before is deleted only when its successor is durable."""
    before = _hidden(target, "old")
    if target.exists():
        os.rename(target, before)
    try:
        os.rename(work, target)
    except OSError:
        if before.exists():
            os.rename(before, target)
        raise
    for folder in (target.parent, target.parent.parent, target.parent.parent.parent):
        fsync_folder(folder)
    shutil.rmtree(before, ignore_errors=True)


def _hidden(folder: Path, what: str) -> Path:
    return folder.with_name(f".{what}.{uuid.uuid4().hex}.{folder.name}")


def _sweep(left: Path) -> None:
    """Bring back what was put aside for a successor that never came; remove the rest."""
    name = left.name.split(".", 3)[-1]
    target = left.with_name(name)
    if left.name.startswith(".old.") and not target.exists():
        os.rename(left, target)
        fsync_folder(target.parent)
    else:
        shutil.rmtree(left, ignore_errors=True)
