"""A small file that says where the log and the views of it stood after the last roll.

`events/_snapshot.json`: the checksum of the rest on the first line, JSON after it. With it a log
opens without reading its parts: only what came after `through` is read. It is a cache: a missing or
damaged one costs the time to read everything again, no data.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crucible_tinkex.storage import storage_errors, write_atomic

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    through: int
    """The last write-ahead segment that is in it."""
    coverage: dict[str, Any]
    """Which `(writer, seq)` the segments up to there hold."""
    sizes: dict[str, int]
    """The parts there were, and their sizes in bytes."""
    state: dict[str, Any] = field(default_factory=dict)
    """Whatever the log's owner keeps."""


def _path(folder: Path) -> Path:
    return folder / "_snapshot.json"


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    body = json.dumps({"format": FORMAT, **asdict(snapshot)}, separators=(",", ":")).encode()
    write_atomic(_path(folder), f"{zlib.crc32(body):08x}\n".encode() + body)


def read_snapshot(folder: Path) -> Snapshot | None:
    """None when there is none, or one that is damaged or of another format."""
    path = _path(folder)
    if not path.exists():
        return None
    with storage_errors(path):
        checksum, _, body = path.read_bytes().partition(b"\n")
    if checksum != f"{zlib.crc32(body):08x}".encode():
        return None
    stored = json.loads(body)
    return Snapshot(**stored) if stored.pop("format") == FORMAT else None
