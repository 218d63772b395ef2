"""Downloads: checkpoints exported for peft and vLLM, fetched by URLs that need no key.

Guarantees: a URL holds a random token of 256 bits, works for `GRANT_S` and only as long as its
checkpoint exists; exports are made beside and renamed. Nothing damaged is handed out: neither a
checkpoint that is not what was saved, nor an export that is not what was made. Exports can be made
again at any time, so they do not outlive the process. Everything here reads files and belongs in a
thread.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.operations import refused
from crucible_tinkex.server.store.peft_files import export_peft
from crucible_tinkex.server.store.store import Store, file_hash
from crucible_tinkex.storage import storage_errors

GRANT_S = 3600.0
ARCHIVE = "archive.tar"
_COMPLETE = "checkpoint_complete"
"""Older clients look for this file in an archive."""


@dataclass(frozen=True, slots=True)
class Grant:
    file: Path
    checkpoint: TinkerPath
    expires: datetime


class Exports:
    def __init__(
        self, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._clock = clock
        self._root = store.data_dir / "exports"
        self._grants: dict[str, Grant] = {}
        self._hashes: dict[Path, dict[str, str]] = {}
        """Of the files of each export, as they were made."""
        self._lock = threading.Lock()
        shutil.rmtree(self._root, ignore_errors=True)

    def grant(self, path: TinkerPath) -> tuple[dict[str, str], datetime]:
        """A token for each file of the checkpoint's export, and when they expire. Raises
        `RequestRejectedError` (404) and, for a checkpoint whose files are not those that were
        saved, `DamagedCheckpointError`."""
        manifest = self._store.info(path)
        folder = self._root / f"{manifest.sha256}-{path.name}"
        now = self._clock()
        expires = now + timedelta(seconds=GRANT_S)
        with self._lock, storage_errors(folder):
            self._forget(now)
            if folder not in self._hashes:
                self._hashes[folder] = self._make(path, folder)
            tokens = {name: secrets.token_urlsafe(32) for name in sorted(self._hashes[folder])}
            for name, token in tokens.items():
                self._grants[token] = Grant(folder / name, path, expires)
        return tokens, expires

    def open(self, token: str, name: str) -> Path:
        """Raises `RequestRejectedError` (404); an export that was damaged is made anew when it is
        asked for again."""
        grant = self._grants.get(token)
        if grant is None or grant.expires < self._clock() or grant.file.name != name:
            raise refused("this download does not exist or has expired; ask for a new URL", 404)
        self._store.info(grant.checkpoint)
        folder = grant.file.parent
        with self._lock, storage_errors(grant.file):
            expected = self._hashes.get(folder, {}).get(name)
            if not grant.file.is_file() or file_hash(grant.file) != expected:
                self._remove(folder)
                raise refused(
                    "this download was damaged on the server's disk; ask for a new URL", 404
                )
        return grant.file

    def _make(self, path: TinkerPath, folder: Path) -> dict[str, str]:
        """The hashes of its files."""
        work = self._root / f".{uuid.uuid4().hex}"
        try:
            export_peft(self._store.folder(path), work)
            _pack(work)
            hashes = {file.name: file_hash(file) for file in work.iterdir()}
            os.rename(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return hashes

    def _forget(self, now: datetime) -> None:
        """The grants that have expired, and the exports that none is left for."""
        self._grants = {t: g for t, g in self._grants.items() if g.expires >= now}
        for folder in self._hashes.keys() - {g.file.parent for g in self._grants.values()}:
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        self._hashes.pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)


def _pack(folder: Path) -> None:
    files = sorted(folder.iterdir())
    (folder / _COMPLETE).touch()
    with tarfile.open(folder / ARCHIVE, "w") as tar:
        for file in [*files, folder / _COMPLETE]:
            tar.add(file, file.name)
    (folder / _COMPLETE).unlink()
