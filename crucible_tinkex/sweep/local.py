"""A sweep in this process, without Ray: the same code on asyncio, for debugging and notebooks.

One event loop holds registry, telemetry and all sessions, so a breakpoint stops everything and a
traceback is whole. Slower than Ray only where Python itself is the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from crucible_tinkex.config import RunSection
from crucible_tinkex.events import Event
from crucible_tinkex.registry import Registry
from crucible_tinkex.runtime.ports import Packing
from crucible_tinkex.telemetry.recorder import Changes, Recorder
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.host import SessionHost
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan


class LocalTelemetry:
    """A `Recorder` as a port."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def record(self, events: Sequence[Event]) -> int:
        return self._recorder.record(events)

    async def changes(self, since: int) -> Changes:
        return self._recorder.changes(since)

    async def close(self) -> None:
        self._recorder.close()


class LocalHost:
    """A `Host` in this process."""

    def __init__(self, sessions: SessionHost) -> None:
        self._sessions = sessions

    async def ready(self) -> None:
        return None

    async def heartbeat(self, after_s: float, known: float) -> float:
        await asyncio.sleep(after_s)
        return 0.0

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        return await self._sessions.advance(plan, to_step)

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await self._sessions.release(trial_id, state, reason)

    async def drain(self, trial_id: str | None = None) -> None:
        self._sessions.drain(trial_id)

    async def hold_back(self, until: float) -> None:
        """All sessions of a process share the client's back-off already."""

    async def forget(self) -> None:
        await self._sessions.aclose()

    def kill(self) -> None:
        """There is nothing to kill: whoever closes the executor cancels its tasks."""

    def keep(self) -> None:
        """Nothing stays warm."""


class LocalExecutor:
    """All of a sweep in one process. `sessions` makes the holder of one host's sessions."""

    def __init__(
        self,
        registry: Registry,
        telemetry: LocalTelemetry,
        sessions: Callable[[SweepData], SessionHost],
        data: SweepData,
    ) -> None:
        self.registry = registry
        self.telemetry = telemetry
        self.launcher = self
        self._sessions = sessions
        self._data = data

    def launch(self, slots: int) -> LocalHost:
        return LocalHost(self._sessions(self._data))

    def renew(self, data: SweepData) -> None:
        """Hosts that are launched from now on are given these rows."""
        self._data = data

    def starting_at_once(self) -> int:
        return 1

    def packing(self, run: RunSection, sessions: int) -> Packing:
        """One host holds all sessions: processes are what Ray is for."""
        slots = max(1, min(run.max_concurrent, sessions))
        return Packing(slots, slots)
