"""Handles that hide `.remote()`: the registry and the telemetry actor as plain async objects.

An actor that died is restarted by Ray within seconds; a handle repeats its call meanwhile, which
is safe because the classes behind are idempotent. Errors of this package come through unchanged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from crucible_tinkex.errors import CrucibleError, StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import AttemptGrant, CheckpointRecord, SweepState, TrialRecord

RETRY_S = 60.0
PAUSE_S = 0.2


async def call(remote: Callable[[], Awaitable[Any]], *, what: str, retry_s: float = RETRY_S) -> Any:
    """Await an actor call, repeating it while the actor is being restarted."""
    deadline = time.monotonic() + retry_s
    while True:
        try:
            return await remote()
        except RayTaskError as e:
            if isinstance(e.cause, CrucibleError):
                raise e.cause from None
            raise
        except (ActorDiedError, ActorUnavailableError) as e:
            if time.monotonic() > deadline:
                raise StorageError(f"the {what} did not come back within {retry_s:.0f} s") from e
            await asyncio.sleep(PAUSE_S)


class RegistryHandle:
    """`RegistryPort` over the registry actor, for one sweep."""

    def __init__(self, actor: ActorHandle[Any], paths: SweepPaths) -> None:
        self._actor = actor
        self._paths = paths

    async def _call(self, method: str, *args: Any) -> Any:
        remote = getattr(self._actor, method).remote
        return await call(lambda: remote(self._paths, *args), what="registry actor")

    async def create(self, meta: Mapping[str, Any], trials: Sequence[TrialRecord]) -> SweepState:
        state: SweepState = await self._call("create", meta, trials)
        return state

    async def start_attempt(self, trial_id: str) -> AttemptGrant:
        grant: AttemptGrant = await self._call("start_attempt", trial_id)
        return grant

    async def commit_checkpoint(self, checkpoint: CheckpointRecord) -> None:
        await self._call("commit_checkpoint", checkpoint)

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float]
    ) -> None:
        await self._call("record_result", trial_id, attempt, step, metrics)

    async def finish(self, trial_id: str, attempt: int, state: str, error: str | None) -> None:
        await self._call("finish", trial_id, attempt, state, error)

    async def set_sweep(self, state: str, *, wall_s: float = 0.0) -> None:
        await self._call("set_sweep", state, wall_s)

    async def state(self) -> SweepState:
        state: SweepState = await self._call("state")
        return state

    async def close(self) -> None:
        await self._call("close")


class TelemetryHandle:
    """The telemetry actor, for one sweep."""

    def __init__(self, actor: ActorHandle[Any], paths: SweepPaths) -> None:
        self._actor = actor
        self._paths = paths

    async def record(self, events: Sequence[Event]) -> int:
        """Returns when the events are durable. Raises `ConnectionError` for "send it again"."""
        try:
            stored: int = await self._actor.record.remote(self._paths, list(events))
        except (ActorDiedError, ActorUnavailableError) as e:
            raise ConnectionError("the telemetry actor is being restarted") from e
        except RayTaskError as e:
            if isinstance(e.cause, CrucibleError):
                raise e.cause from None
            raise
        return stored

    async def snapshot(self) -> dict[str, dict[str, Any]]:
        """The newest metrics per trial; empty while the actor is being restarted."""
        try:
            newest: dict[str, dict[str, Any]] = await self._actor.snapshot.remote(self._paths)
        except (ActorDiedError, ActorUnavailableError):
            return {}
        return newest

    async def close(self) -> None:
        await call(lambda: self._actor.close.remote(self._paths), what="telemetry actor")
