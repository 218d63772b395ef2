"""The registry actor: `Registry` behind Ray.

Every call names its sweep by folder, and its run: the actor opens what it needs on first use, so
one that Ray restarted serves the next call as if nothing had happened, because the truth lies on
disk. Ray never repeats a call (`max_task_retries=0`); callers may, because `Registry` makes that
harmless. A run that was followed by a newer one is refused (`StaleEpochError`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Registry
from crucible_tinkex.runtime.actors.gathering import Call


class RegistryActor:
    """Owns the journals of the sweeps that run on this cluster."""

    def __init__(self) -> None:
        self._open: dict[tuple[SweepPaths, str], Registry] = {}

    async def calls(self, paths: SweepPaths, run_id: str, calls: Sequence[Call]) -> list[Any]:
        """Methods of the run's `Registry`, by name, begun in this order; they share an fsync. What
        one raises is its answer."""
        if (paths, run_id) not in self._open:
            self._open[paths, run_id] = Registry(paths, run_id)
        registry = self._open[paths, run_id]
        work = (getattr(registry, method)(*args) for method, args in calls)
        return await asyncio.gather(*work, return_exceptions=True)

    async def close(self, paths: SweepPaths, run_id: str) -> None:
        """Give the journal free; nothing if it is not open here."""
        registry = self._open.pop((paths, run_id), None)
        if registry is not None:
            registry.shut()

    async def pid(self) -> int:
        return os.getpid()
