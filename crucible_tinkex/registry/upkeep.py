"""Writing to the journal of a sweep that does not run: pins, tombstones, checkpoints saved by hand,
and what a proof took that refused the run.

Guarantees: refused while a run owns the journal; it begins no run, so a sweep that has ended stays
ended; `write` returns when its records are durable, and folds them into `state`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry.facts import JournalFacts
from crucible_tinkex.registry.journal import VERSION, JournalWriter, read_records
from crucible_tinkex.registry.state import SweepState
from crucible_tinkex.storage import Lock
from crucible_tinkex.telemetry.facts.fact import tell


class Upkeep:
    """A context that owns the sweep, unless its caller does (`owned`). Raises `SweepBusyError` that
    names who does."""

    def __init__(
        self,
        paths: SweepPaths,
        *,
        clock: Callable[[], float] = time.time,
        owned: bool = False,
    ) -> None:
        self._clock = clock
        self._paths = paths
        self._held = ExitStack()
        with ExitStack() as stack:
            for path in (*(() if owned else (paths.lock,)), paths.journal / "lock"):
                stack.callback(Lock(path).close)
            self._journal = JournalWriter(paths.journal)
            stack.callback(self._journal.close)
            records = [*read_records(paths.journal)]
            self.state = SweepState().fold(records)
            self._facts = JournalFacts(paths.root.name)
            for _ in self._facts.of(records):
                pass  # told when they were written
            self.write({"type": "upkeep", "follows": self._journal.follows})
            self._held = stack.pop_all()

    def write(self, *records: Mapping[str, Any]) -> None:
        stamp = {"v": VERSION, "epoch": self.state.epoch, "time": self._clock()}
        stamped = [{**r, **stamp} for r in records]
        self._journal.stage(stamped)
        self._journal.write()
        self.state.fold(stamped)
        tell(self._paths.root.parent, *self._facts.of(stamped))

    def __enter__(self) -> Upkeep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._held.close()
