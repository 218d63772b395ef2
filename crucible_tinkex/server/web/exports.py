"""Downloads: checkpoints exported for peft and vLLM, fetched by URLs that need no key.

Guarantees: a URL holds a random token of 256 bits, works for `GRANT_S` and only as long as its
checkpoint exists; exports are made beside and renamed. Nothing damaged is handed out: neither a
checkpoint that is not what was saved, nor an export that is not what was made. Exports can be made
again at any time, so they do not outlive the process. `prepare` and `open` read files and belong in
a thread; the rest is quick.
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
    sha256: str


class Exports:
    def __init__(
        self, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._clock = clock
        self._root = store.data_dir / "exports"
        self._grants: dict[str, Grant] = {}
        self._hashes: dict[Path, str] = {}
        """Of the files of all exports, as they were made."""
        self._making = threading.Lock()
        shutil.rmtree(self._root, ignore_errors=True)

    def prepare(self, path: TinkerPath) -> Path:
        """The folder of the checkpoint's export. Raises `RequestRejectedError` (404) and, for one
        whose files are not those that were saved, `DamagedCheckpointError`."""
        manifest = self._store.info(path)
        self._clear()
        target = self._root / f"{manifest.sha256}-{path.name}"
        with self._making, storage_errors(target):
            if target.exists():
                os.utime(target)
                return target
            work = self._root / f".{uuid.uuid4().hex}"
            try:
                export_peft(self._store.folder(path), work)
                _pack(work)
                hashes = {target / file.name: file_hash(file) for file in work.iterdir()}
                os.rename(work, target)
                self._hashes |= hashes
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return target

    def grant(self, path: TinkerPath, file: Path) -> tuple[str, datetime]:
        """A token for a file of the checkpoint's export, and when it expires."""
        now = self._clock()
        for token in [t for t, g in self._grants.items() if g.expires < now]:
            del self._grants[token]
        token = secrets.token_urlsafe(32)
        expires = now + timedelta(seconds=GRANT_S)
        self._grants[token] = Grant(file, path, expires, self._hashes[file])
        return token, expires

    def open(self, token: str, name: str) -> Path:
        """Raises `RequestRejectedError` (404); an export that was damaged is made anew when it is
        asked for again."""
        grant = self._grants.get(token)
        if grant is None or grant.expires < self._clock() or grant.file.name != name:
            raise refused("this download does not exist or has expired; ask for a new URL", 404)
        self._store.info(grant.checkpoint)
        if not self._is_whole(grant):
            raise refused("this download was damaged on the server's disk; ask for a new URL", 404)
        return grant.file

    def _is_whole(self, grant: Grant) -> bool:
        with self._making, storage_errors(grant.file):
            if grant.file.is_file() and file_hash(grant.file) == grant.sha256:
                return True
            shutil.rmtree(grant.file.parent, ignore_errors=True)
            return False

    def _clear(self) -> None:
        """Remove the exports that nobody has asked for since the last URL of them expired."""
        limit_s = self._clock().timestamp() - GRANT_S - 60
        with self._making, storage_errors(self._root):
            for folder in self._root.glob("[!.]*"):
                if folder.stat().st_mtime < limit_s:
                    shutil.rmtree(folder, ignore_errors=True)


def _pack(folder: Path) -> None:
    files = sorted(folder.iterdir())
    (folder / _COMPLETE).touch()
    with tarfile.open(folder / ARCHIVE, "w") as tar:
        for file in [*files, folder / _COMPLETE]:
            tar.add(file, file.name)
    (folder / _COMPLETE).unlink()
