"""What the controller needs of the world, and nothing of how it gets it.

The registry's port is `registry.ControlPort`, the pool's hosts are `runtime.ports.Host`. An
executor brings them together: Ray actors (`runtime.executor`) or this process (`sweep.local`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from crucible_tinkex.config import RunSection
from crucible_tinkex.registry import ControlPort
from crucible_tinkex.runtime.ports import HostLauncher, Packing
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.training.data import SweepData


class TelemetryChanges(Protocol):
    """`telemetry.recorder.Changes`."""

    @property
    def revision(self) -> int: ...

    @property
    def trials(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def faults(self) -> tuple[str, ...]: ...


class TelemetryPort(Protocol):
    """What shows how things stand. Never decides and never blocks anything."""

    async def changes(self, since: int) -> TelemetryChanges | None:
        """What changed after a revision; None while telemetry is away."""
        ...

    async def close(self) -> None: ...


class CheckpointStore(Protocol):
    """The checkpoints of a service. Raises `ServiceError`."""

    async def delete(self, path: str) -> None:
        """Deleting what is already gone succeeds."""
        ...

    async def set_ttl(self, path: str, ttl_s: int | None) -> None:
        """Keep for so many seconds from now; None: for ever."""
        ...

    async def close(self) -> None: ...


class Executor(Protocol):
    """Where a sweep's sessions run, and what keeps its memory. Made per run."""

    @property
    def registry(self) -> ControlPort: ...

    @property
    def telemetry(self) -> TelemetryPort: ...

    @property
    def launcher(self) -> HostLauncher: ...

    def packing(self, run: RunSection, sessions: int) -> Packing: ...

    def renew(self, data: SweepData) -> None:
        """Hosts that are launched from now on are given these rows."""
        ...


@dataclass(frozen=True)
class Amendment:
    """The sweep with other settings."""

    policy: Policy
    planner: Planner
    meta: Mapping[str, Any]
    changed: Sequence[str]


Amend: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Amendment]]
