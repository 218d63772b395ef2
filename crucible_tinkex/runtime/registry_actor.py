"""The registry actor: `Registry` behind Ray.

Every call names its sweep by folder, and its run: the actor opens what it needs on first use, so
one that Ray restarted serves the next call as if nothing had happened, because the truth lies on
disk. Ray never repeats a call (`max_task_retries=0`); callers may, because `Registry` makes that
harmless. A run that was followed by a newer one is refused (`StaleEpochError`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Registry


class RegistryActor:
    """Owns the journals of the sweeps that run on this cluster."""

    def __init__(self) -> None:
        self._open: dict[tuple[SweepPaths, str], Registry] = {}

    async def call(self, paths: SweepPaths, run_id: str, method: str, args: Sequence[Any]) -> Any:
        """A method of the run's `Registry`, by name."""
        if (paths, run_id) not in self._open:
            self._open[paths, run_id] = Registry(paths, run_id)
        return await getattr(self._open[paths, run_id], method)(*args)

    async def close(self, paths: SweepPaths, run_id: str) -> None:
        """Give the journal free; nothing if it is not open here."""
        registry = self._open.pop((paths, run_id), None)
        if registry is not None:
            registry.shut()

    async def pid(self) -> int:
        return os.getpid()
