"""How far an experiment got: a small file of the experiment, and one of each cell, replaced after
every step, so that cells that run at the same time disturb neither each other nor their order.

The original's checkpoints were never written, and what would have read them looked for other keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crucible_tinkex.errors import ConfigError, CorruptLogError
from crucible_tinkex.storage import Lock, storage_errors, write_atomic

FILE = "harness.json"
CELLS = "cells"
LOCK = "harness.lock"
VERSION = 2


class CellRecord:
    """The steps of one cell: `state` (`done`, `open`), `result` and `progress` by name."""

    def __init__(self, path: Path | None, steps: Mapping[str, Mapping[str, Any]]) -> None:
        self._path = path
        self._steps = dict(steps)

    def step(self, name: str) -> Mapping[str, Any]:
        return self._steps.get(name, {})

    def record(self, name: str, **fields: Any) -> None:
        """Raises `ConfigError` if a result is not made of JSON values; then nothing is kept of
        it."""
        steps = {**self._steps, name: fields}
        if self._path is not None:
            text = as_json(name, {"version": VERSION, "steps": steps})
            write_atomic(self._path, text.encode())
        self._steps = steps


def as_json(step: str, found: Any) -> str:
    """Raises `ConfigError` that names the step which gave something else than JSON values."""
    try:
        return json.dumps(found, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"step {step!r} gave what JSON cannot hold ({error}); give plain values"
        ) from None


class HarnessState:
    """Without a folder nothing is kept. With one it is this process's alone until `close`."""

    def __init__(
        self, folder: str | Path | None, identity: str, trace_id: str, *, seed: int = 0
    ) -> None:
        """`trace_id`: of an experiment that begins here. Raises `ConfigError` if the folder holds
        another experiment, or this one with another `seed` of its first repeat, `SweepBusyError`
        if a process is at work in it, `CorruptLogError` if a file is damaged."""
        self._folder = None if folder is None else Path(folder)
        self._identity = identity
        self._seed = seed
        self._former: Mapping[str, Any] = {}
        """Cells as version 1 kept them, in one file."""
        self.trace_id = trace_id
        self._lock = None if self._folder is None else Lock(self._folder / LOCK, wait_s=0.5)
        try:
            if self._folder is not None:
                self._begin(self._folder / FILE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def cell(self, condition: str, repeat: int) -> CellRecord:
        """Raises `CorruptLogError` if its file is damaged."""
        former = self._former.get(f"{condition}/{repeat}", {})
        if self._folder is None:
            return CellRecord(None, former)
        path = self._folder / CELLS / f"{quote(condition, safe='')}-{repeat}.json"
        found = _read(path)
        try:
            return CellRecord(path, former if found is None else dict(found["steps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None

    def _begin(self, path: Path) -> None:
        found = _read(path)
        if found is None:
            about = {"version": VERSION, "identity": self._identity, "trace_id": self.trace_id}
            write_atomic(path, json.dumps({**about, "seed": self._seed}, indent=1).encode())
            return
        try:
            identity, self.trace_id = found["identity"], found["trace_id"]
            self._former = dict(found.get("cells", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None
        if identity != self._identity:
            raise ConfigError(
                f"{path.parent} holds an experiment of other steps, options or conditions; "
                "choose another folder"
            )
        if (seed := found.get("seed", self._seed)) != self._seed:  # version 1 did not say
            raise ConfigError(
                f"{path.parent} holds this experiment with seed = {seed}, not {self._seed}; "
                "choose another folder, or that seed"
            )


def _read(path: Path) -> Any:
    """What the file holds; None where there is none."""
    if not path.exists():
        return None
    with storage_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CorruptLogError:
    return CorruptLogError(
        f"{path} is damaged ({error}); move it away to begin what it was about again"
    )
