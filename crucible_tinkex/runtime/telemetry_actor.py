"""The telemetry actor: `Recorder` behind Ray, opened per sweep on first use like the registry's.

Whoever receives a handle of this actor imports this module, so `Recorder`, with Arrow, DuckDB and
TensorBoard behind it, is imported only where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.recorder import Changes, Recorder


class TelemetryActor:
    """Owns the event logs and TensorBoard views of the sweeps that run on this cluster."""

    def __init__(self) -> None:
        self._open: dict[SweepPaths, Recorder] = {}

    def _recorder(self, paths: SweepPaths) -> Recorder:
        if paths not in self._open:
            from crucible_tinkex.telemetry.recorder import Recorder

            self._open[paths] = Recorder(paths)
        return self._open[paths]

    def record(self, paths: SweepPaths, events: Sequence[Event]) -> int:
        return self._recorder(paths).record(events)

    def snapshot(self, paths: SweepPaths) -> dict[str, dict[str, Any]]:
        return self._recorder(paths).snapshot()

    def changes(self, paths: SweepPaths, since: int) -> Changes:
        return self._recorder(paths).changes(since)

    def close(self, paths: SweepPaths) -> None:
        if paths in self._open:
            self._open.pop(paths).close()

    def pid(self) -> int:
        return os.getpid()
