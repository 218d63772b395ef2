"""Checkpoints on disk: one folder each, written beside and renamed, with a manifest.

    <data_dir>/checkpoints/<run>/<kind>/<name>/manifest.json
                                              adapter.safetensors
                                              optimizer.safetensors   (kind `weights` only)

Guarantees: a checkpoint is there whole or not at all (files and folders are fsynced before and
after the rename); a new `Store` on the same folder finds all of them; a name is never replaced
unless `overwrite` is asked for. Tensors are read and written by the caller (`files`); this module
imports no torch, so the app can list checkpoints without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import RequestRejectedError, StorageError
from crucible_tinkex.names import TinkerPath, base_name
from crucible_tinkex.server.operations import LoraSpec
from crucible_tinkex.storage import fsync_folder, storage_errors, write_atomic

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is; the hashes are of its adapter and its optimizer file. Exports are
    encrypted to `recipients` if there are any."""

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
    public: bool = False
    user_metadata: Mapping[str, str] | None = None
    recipients: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str) -> Manifest:
        fields = json.loads(text)
        fields["spec"] = LoraSpec(**fields["spec"])
        fields["base_model"] = base_name(fields["base_model"])
        return cls(**fields)

    @property
    def path(self) -> TinkerPath:
        return TinkerPath.parse(self.tinker_path)

    def expired(self) -> bool:
        return self.expires is not None and datetime.fromisoformat(self.expires) < datetime.now(UTC)


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
            whole = self._root.glob("*/*/[!.]*/manifest.json")  # hidden: a save that died midway
            self._found = {m.path: m for m in map(_read, whole)}

    def folder(self, path: TinkerPath) -> Path:
        return self._root / path.run_id.replace(":", "+") / path.kind / path.name

    def list(self, run_id: str | None = None) -> list[Manifest]:
        """Oldest first; expired ones are deleted on the way."""
        self.purge()
        found = [m for m in list(self._found.values()) if run_id in (None, m.path.run_id)]
        return sorted(found, key=lambda m: m.created)

    def purge(self) -> None:
        """Delete what has expired."""
        for manifest in list(self._found.values()):
            if manifest.expired():
                with suppress(RequestRejectedError):  # somebody else was faster
                    self.delete(manifest.path)

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
            raise RequestRejectedError(
                f"checkpoint {path} exists; choose another name or ask to overwrite",
                status=400,
                category="user",
            )
        target = self.folder(path)
        work = target.with_name(f".{path.name}.{uuid.uuid4().hex}")
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
        return done

    def update(self, path: TinkerPath, **changes: Any) -> Manifest:
        """Change `public` or `expires`. Raises `RequestRejectedError` (404)."""
        with self._changing:
            manifest = replace(self.info(path), **changes)
            text = json.dumps(asdict(manifest), indent=1)
            write_atomic(self.folder(path) / MANIFEST_FILE, text.encode())
            self._found[path] = manifest
        return manifest

    def copy(self, source: TinkerPath, run_id: str, expires: str | None) -> Manifest:
        """The same checkpoint in another run; the files are shared, for they never change."""
        manifest = self.info(source)
        target = TinkerPath(run_id, source.kind, source.name)
        made = replace(
            manifest,
            tinker_path=str(target),
            created=datetime.now(UTC).isoformat(),
            expires=expires,
            public=False,
        )
        folder = self.folder(source)

        def link(work: Path) -> None:
            for name in (ADAPTER_FILE, OPTIMIZER_FILE):
                if (folder / name).exists():
                    os.link(folder / name, work / name)

        return self.save(made, link)

    def delete(self, path: TinkerPath) -> None:
        """Raises `RequestRejectedError` (404) if there is no such checkpoint."""
        with self._changing:
            if self._found.pop(path, None) is None:
                raise _missing(path)
            with storage_errors(self.folder(path)):
                _remove(self.folder(path))


def _missing(path: TinkerPath) -> RequestRejectedError:
    return RequestRejectedError(f"there is no checkpoint {path}", status=404, category="user")


def _read(path: Path) -> Manifest:
    try:
        return Manifest.parse(path.read_text())
    except (ValueError, TypeError, KeyError) as e:
        raise StorageError(f"{path} is not a checkpoint manifest: {e}") from e


def _hash(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_hash(path: Path, sha256: str) -> None:
    """Raises `StorageError` if the file is not the one that was saved."""
    with storage_errors(path):
        if sha256 and _hash(path) != sha256:
            raise StorageError(f"{path} is damaged: it is not what was saved; load another one")


def _complete(manifest: Manifest, work: Path) -> Manifest:
    """Add hash and size, write the manifest, and make every file durable."""
    size_bytes = sum(p.stat().st_size for p in work.iterdir())
    fields = {**asdict(manifest), "size_bytes": size_bytes}
    for name, field in ((ADAPTER_FILE, "sha256"), (OPTIMIZER_FILE, "optimizer_sha256")):
        fields[field] = _hash(work / name) if (work / name).exists() else ""
    (work / MANIFEST_FILE).write_text(json.dumps(fields, indent=1))
    for file in work.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    fsync_folder(work)
    return Manifest.parse(json.dumps(fields))


def _publish(work: Path, target: Path) -> None:
    """What stood there before is deleted only when its successor is durable."""
    before = _put_aside(target) if target.exists() else None
    os.rename(work, target)
    for folder in (target.parent, target.parent.parent, target.parent.parent.parent):
        fsync_folder(folder)
    if before:
        shutil.rmtree(before)


def _remove(folder: Path) -> None:
    """Rename first, so that a crash leaves no half of a checkpoint under its name."""
    shutil.rmtree(_put_aside(folder))


def _put_aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    os.rename(folder, aside)
    return aside
