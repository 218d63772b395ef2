"""How far an experiment got, as one small file that is replaced after every step.

The original's checkpoints were never written, and what would have read them looked for other keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError, CorruptLogError
from crucible_tinkex.storage import storage_errors, write_atomic

FILE = "harness.json"
VERSION = 1


class HarnessState:
    """Without a folder nothing is kept. `cells[condition/repeat][step]` has `state` (`done`,
    `skipped`, `open`), `result` and `progress`."""

    def __init__(self, folder: str | Path | None, identity: str) -> None:
        """Raises `ConfigError` if the folder holds another experiment, `CorruptLogError` if the
        file is damaged."""
        self._path = None if folder is None else Path(folder) / FILE
        self._identity = identity
        self._cells: dict[str, dict[str, dict[str, Any]]] = {}
        self.trace_id: str | None = None
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        with storage_errors(path):
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
            identity, self._cells = found["identity"], found["cells"]
            self.trace_id = found["trace_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptLogError(
                f"{path} is damaged ({error}); move it away to begin the experiment again"
            ) from None
        if identity != self._identity:
            raise ConfigError(
                f"{path.parent} holds an experiment of other steps, options or conditions; "
                "choose another folder"
            )

    def step(self, cell: str, name: str) -> Mapping[str, Any]:
        return self._cells.get(cell, {}).get(name, {})

    def record(self, cell: str, name: str, **fields: Any) -> None:
        """Raises `ConfigError` if a result is not made of JSON values."""
        self._cells.setdefault(cell, {})[name] = fields
        if self._path is None:
            return
        content = {
            "version": VERSION,
            "identity": self._identity,
            "trace_id": self.trace_id,
            "cells": self._cells,
        }
        try:
            text = json.dumps(content, indent=1)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"step {name!r} gave what JSON cannot hold ({error}); give plain values"
            ) from None
        write_atomic(self._path, text.encode())
