"""Copies of adapters in a folder or a bucket, with the hash of every file.

    <place>/<sweep>/<trial id>/<checkpoint name>/<file> ...
                                                 manifest.json

Guarantees: the manifest is written last, so a copy that has one is whole; it holds size and SHA-256
of every file, and `verify` reads all of them again; copying again what is there and whole does
nothing. What is copied is what peft loads, so a copy needs no service to be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError, CorruptLogError, StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.registry import CheckpointRecord
from crucible_tinkex.storage import Objects, make_folder, storage_errors

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Copy:
    """One copied checkpoint. `files`: size and hash by name."""

    prefix: str
    checkpoint_path: str
    files: Mapping[str, Mapping[str, Any]]


class Copies:
    """Those of one sweep in one place."""

    def __init__(self, place: str | Path, sweep: str) -> None:
        self.objects = Objects.open(place)
        self._sweep = sweep

    @classmethod
    def existing(cls, place: str | Path, sweep: str) -> Copies:
        """To be read. Raises `ConfigError` where there are none, so that a misspelt place or sweep
        is not taken for one without damage; makes no folder."""
        if "://" not in str(place) and not Path(place).expanduser().is_dir():
            raise ConfigError(f"there is no folder {place}; copies are made by `checkpoints copy`")
        found = cls(place, sweep)
        if not found.all():
            raise ConfigError(
                f"{found.objects.url} holds no copies of a sweep {sweep!r}; look at the spelling, "
                "or copy it: `crucible checkpoints copy`"
            )
        return found

    def prefix(self, checkpoint: CheckpointRecord) -> str:
        name = TinkerPath.read(checkpoint.path).name
        return f"{self._sweep}/{checkpoint.trial_id}/{name}"

    def find(self, checkpoint: CheckpointRecord) -> Copy | None:
        """The copy, if there is a whole one."""
        key = f"{self.prefix(checkpoint)}/{MANIFEST}"
        if self.objects.info(key) is None:
            return None
        return self._read(key)

    def all(self) -> list[Copy]:
        keys = (o.key for o in self.objects.listing(self._sweep))
        return [self._read(key) for key in keys if key.endswith(f"/{MANIFEST}")]

    def put(self, checkpoint: CheckpointRecord, folder: Path, about: Mapping[str, Any]) -> Copy:
        """Copy the files of a folder; `about` goes into the manifest."""
        prefix = self.prefix(checkpoint)
        files = {}
        with storage_errors(folder):
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                name = path.relative_to(folder).as_posix()
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.objects.put(f"{prefix}/{name}", path)
                files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256}
        told = {**about, "checkpoint_path": checkpoint.path, "files": files}
        self.objects.put(f"{prefix}/{MANIFEST}", json.dumps(told, indent=1).encode())
        return Copy(prefix, checkpoint.path, files)

    def fetch(self, copy: Copy, folder: Path) -> None:
        """Bring a copy into a new folder. Raises `StorageError` if it is not what was copied."""
        make_folder(folder)
        for name, known in copy.files.items():
            target = folder / name
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                sha256 = hashlib.sha256()
                with target.open("wb") as file:
                    for piece in self.objects.stream(f"{copy.prefix}/{name}"):
                        sha256.update(piece)
                        file.write(piece)
            if sha256.hexdigest() != known["sha256"]:
                target.unlink()
                raise StorageError(f"{self._where(copy, name)} is damaged: copy it again")

    def verify(self, copy: Copy) -> list[str]:
        """What is wrong with a copy, in words; nothing if it is whole."""
        wrong = []
        for name, known in copy.files.items():
            try:
                pieces: Iterable[bytes] = self.objects.stream(f"{copy.prefix}/{name}")
                found = hashlib.sha256()
                for piece in pieces:
                    found.update(piece)
            except StorageError as e:
                wrong.append(e.message)
            else:
                if found.hexdigest() != known["sha256"]:
                    wrong.append(f"{self._where(copy, name)} is damaged")
        return wrong

    def delete(self, copy: Copy) -> None:
        """The manifest goes first, so that a half deleted copy is none."""
        self.objects.delete(f"{copy.prefix}/{MANIFEST}")
        self.objects.delete_all(copy.prefix)

    def _where(self, copy: Copy, name: str) -> str:
        return f"{self.objects.url}/{copy.prefix}/{name}"

    def _read(self, key: str) -> Copy:
        try:
            found = json.loads(self.objects.get(key))
            return Copy(key.rsplit("/", 1)[0], found["checkpoint_path"], dict(found["files"]))
        except (ValueError, TypeError, KeyError) as e:
            raise CorruptLogError(
                f"{self.objects.url}/{key} is damaged: {e!r}; delete it and copy again"
            ) from e
