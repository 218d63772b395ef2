"""The telemetry actor: `Recorder` behind Ray, opened per sweep on first use like the registry's.

Its methods run at the same time, so that batches of many processes share an fsync. Whoever receives
a handle of this actor imports this module, so `Recorder`, with Arrow, DuckDB and TensorBoard behind
it, is imported only where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.group_commit import GroupCommit
    from crucible_tinkex.telemetry.recorder import Changes


class TelemetryActor:
    """Owns the event logs and TensorBoard views of the sweeps that run on this cluster."""

    def __init__(self) -> None:
        self._open: dict[SweepPaths, GroupCommit] = {}

    def _recorder(self, paths: SweepPaths) -> GroupCommit:
        if paths not in self._open:
            from crucible_tinkex.telemetry.group_commit import GroupCommit
            from crucible_tinkex.telemetry.recorder import Recorder

            self._open[paths] = GroupCommit(lambda: Recorder(paths))
        return self._open[paths]

    async def record(self, paths: SweepPaths, events: Sequence[Event]) -> int:
        return await self._recorder(paths).record(events)

    async def changes(self, paths: SweepPaths, since: int) -> Changes:
        """Raises what is wrong with the sweep's event log, if it is the first call."""
        return await self._recorder(paths).changes(since)

    async def close(self, paths: SweepPaths) -> None:
        if paths in self._open:
            await self._open.pop(paths).close()

    async def pid(self) -> int:
        return os.getpid()
