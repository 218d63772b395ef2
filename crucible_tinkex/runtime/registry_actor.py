"""The registry actor: `Registry` behind Ray.

Every call names its sweep by folder, and the actor opens what it needs on first use: one that Ray
restarted serves the next call as if nothing had happened, because the truth lies on disk. Ray never
repeats a call (`max_task_retries=0`); callers may, because the wrapped class makes that harmless.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import (
    AttemptGrant,
    CheckpointRecord,
    Registry,
    SweepState,
    TrialRecord,
)


class RegistryActor:
    """Owns the journals of the sweeps that run on this cluster."""

    def __init__(self) -> None:
        self._open: dict[SweepPaths, Registry] = {}

    def _registry(self, paths: SweepPaths) -> Registry:
        if paths not in self._open:
            self._open[paths] = Registry(paths)
        return self._open[paths]

    def create(
        self, paths: SweepPaths, meta: Mapping[str, Any], trials: Sequence[TrialRecord]
    ) -> SweepState:
        registry = self._registry(paths)
        registry.create(meta, trials)
        return registry.state

    def start_attempt(self, paths: SweepPaths, trial_id: str) -> AttemptGrant:
        return self._registry(paths).start_attempt(trial_id)

    def commit_checkpoint(self, paths: SweepPaths, checkpoint: CheckpointRecord) -> None:
        self._registry(paths).commit_checkpoint(checkpoint)

    def record_result(
        self,
        paths: SweepPaths,
        trial_id: str,
        attempt: int,
        step: int,
        metrics: Mapping[str, float],
    ) -> None:
        self._registry(paths).record_result(trial_id, attempt, step, metrics)

    def finish(
        self, paths: SweepPaths, trial_id: str, attempt: int, state: str, error: str | None
    ) -> None:
        self._registry(paths).finish(trial_id, attempt, state, error)

    def set_sweep(self, paths: SweepPaths, state: str, wall_s: float) -> None:
        self._registry(paths).set_sweep(state, wall_s=wall_s)

    def state(self, paths: SweepPaths) -> SweepState:
        return self._registry(paths).state

    def close(self, paths: SweepPaths) -> None:
        if paths in self._open:
            self._open.pop(paths).close()

    def pid(self) -> int:
        return os.getpid()
