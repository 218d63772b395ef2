"""Handles that hide `.remote()`: the registry and the telemetry actor as plain async objects.

Ray's errors end here (`answer`): errors of this package come through unchanged, what Ray says of a
process becomes an error of ours with Ray's reason in a line. Ray restarts the registry and the
telemetry actor within seconds; a handle repeats its call meanwhile, which is safe because every
call of the classes behind may be repeated: one that is no fact but an operation carries a name that
was made before the first try.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from crucible_tinkex.errors import ClusterLostError, CrucibleError, StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import AttemptGrant, CheckpointRecord, Decision, Spent, Used
from crucible_tinkex.registry.registry import Changes as RegistryChanges
from crucible_tinkex.runtime.actors.gathering import Call, Gathering

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.recorder import Changes

ANSI = re.compile(r"\x1b\[[0-9;]*m")
RETRY_S = 60.0
PAUSE_S = 0.2
AWAY = (ActorDiedError, ActorUnavailableError)
"""The actor is being restarted, or was never up."""


async def answer(call: Awaitable[Any], *, lost: type[CrucibleError] = ClusterLostError) -> Any:
    """The answer of an actor. Raises `lost` where Ray has none."""
    try:
        return await call
    except RayTaskError as e:
        if isinstance(e.cause, CrucibleError):
            raise e.cause from None
        raise lost(f"a worker process failed: {e.cause!r}") from e
    except AWAY as e:
        raise lost(f"a worker process is gone: {reason(e)}") from e
    except RayError as e:
        raise lost(f"Ray failed: {reason(e)}") from e


def reason(error: BaseException) -> str:
    """Ray's words in a line: the first of its many lines, and the last, which has the cause."""
    lines = [line.strip() for line in ANSI.sub("", str(error)).splitlines()]
    said = [line for line in lines if line] or [type(error).__name__]
    return said[0] if len(said) == 1 else f"{said[0]} ... {said[-1]}"


async def repeated(
    remote: Callable[[], Awaitable[Any]], *, what: str, retry_s: float = RETRY_S
) -> Any:
    """Await an actor call, repeating it while the actor is being restarted."""
    deadline = time.monotonic() + retry_s
    while True:
        try:
            return await answer(remote())
        except ClusterLostError as e:
            if not isinstance(e.__cause__, AWAY):
                raise
            if time.monotonic() > deadline:
                text = f"the {what} did not come back within {retry_s:.0f} s: {e.message}"
                raise StorageError(text) from e
            await asyncio.sleep(PAUSE_S)


class RegistryHandle:
    """`ControlPort` over the registry actor, for one run of one sweep. The sessions of a process
    share one, and their calls travel together (`gathering`)."""

    def __init__(self, actor: ActorHandle[Any], paths: SweepPaths, run_id: str) -> None:
        self._actor = actor
        self._paths = paths
        self._run_id = run_id
        self._gathering = Gathering(self._send)

    async def _send(self, calls: Sequence[Call]) -> Sequence[Any]:
        remote: Any = self._actor.calls.remote
        found: Sequence[Any] = await repeated(
            lambda: remote(self._paths, self._run_id, calls), what="registry actor"
        )
        return found

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._gathering.call(method, *args)
        except (CrucibleError, asyncio.CancelledError):
            raise
        except Exception as e:
            raise ClusterLostError(f"the registry failed: {e!r}") from e

    async def start_attempt(self, trial_id: str) -> AttemptGrant:
        grant: AttemptGrant = await self._call("start_attempt", trial_id, uuid.uuid4().hex)
        return grant

    async def intend_checkpoint(self, trial_id: str, attempt: int, path: str) -> None:
        await self._call("intend_checkpoint", trial_id, attempt, path)

    async def commit_checkpoint(self, checkpoint: CheckpointRecord, spent: Spent) -> None:
        await self._call("commit_checkpoint", checkpoint, spent)

    async def lose_checkpoint(self, trial_id: str, attempt: int, path: str, reason: str) -> None:
        await self._call("lose_checkpoint", trial_id, attempt, path, reason)

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float], spent: Spent
    ) -> None:
        await self._call("record_result", trial_id, attempt, step, metrics, spent)

    async def record_spend(
        self, trial_id: str, attempt: int, spent: Spent, announced: Spent | None = None
    ) -> Used:
        used: Used = await self._call("record_spend", trial_id, attempt, spent, announced)
        return used

    async def finish(
        self, trial_id: str, attempt: int, state: str, error: str | None, spent: Spent
    ) -> None:
        await self._call("finish", trial_id, attempt, state, error, spent)

    async def create(self, meta: Mapping[str, Any]) -> None:
        await self._call("create", meta)

    async def amend(self, meta: Mapping[str, Any], changed: Sequence[str], op: str) -> None:
        await self._call("amend", meta, changed, op)

    async def decide(self, decisions: Sequence[Decision], op: str) -> None:
        await self._call("decide", decisions, op)

    async def upkeep(self, records: Sequence[Mapping[str, Any]], op: str) -> None:
        await self._call("upkeep", records, op)

    async def set_sweep(self, state: str, op: str, wall_s: float = 0.0) -> None:
        await self._call("set_sweep", state, op, wall_s)

    async def changes(self, since: int) -> RegistryChanges:
        found: RegistryChanges = await self._call("changes", since)
        return found

    async def close(self) -> None:
        remote: Any = self._actor.close.remote
        await repeated(lambda: remote(self._paths, self._run_id), what="registry actor")


class TelemetryHandle:
    """The telemetry actor, for one sweep."""

    def __init__(self, actor: ActorHandle[Any], paths: SweepPaths) -> None:
        self._actor = actor
        self._paths = paths

    async def record(self, events: Sequence[Event]) -> int:
        """Returns when the events are durable. Raises `ConnectionError` for "send it again"."""
        try:
            stored: int = await answer(self._actor.record.remote(self._paths, list(events)))
        except ClusterLostError as e:
            raise ConnectionError(f"the telemetry actor is away: {e.message}") from e
        return stored

    async def changes(self, since: int) -> Changes | None:
        """What changed after a revision; None while the actor is being restarted."""
        try:
            found: Changes = await answer(self._actor.changes.remote(self._paths, since))
        except ClusterLostError:
            return None
        return found

    async def close(self) -> None:
        remote: Any = self._actor.close.remote
        await repeated(lambda: remote(self._paths), what="telemetry actor")
