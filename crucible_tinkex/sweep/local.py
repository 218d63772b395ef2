"""A sweep in this process, without Ray: the same code on asyncio, for debugging and notebooks.

One event loop holds registry, telemetry and all sessions, so a breakpoint stops everything and a
traceback is whole. Slower than Ray only where Python itself is the limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from crucible_tinkex.config import RunSection
from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.registry import Registry
from crucible_tinkex.runtime.actors.pulse import Pulse
from crucible_tinkex.runtime.ports import Beat, Packing
from crucible_tinkex.sweep.connection import Connection
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.telemetry.bridge import Handler
from crucible_tinkex.telemetry.recorder import Changes, Recorder
from crucible_tinkex.telemetry.sender import BufferedSink
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

    def __init__(self, sessions: SessionHost, pulse: Pulse) -> None:
        self._sessions = sessions
        self._pulse = pulse

    async def ready(self) -> None:
        return None

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        return await self._pulse.beat(self._sessions, after_s, known)

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        return await self._sessions.advance(plan, to_step)

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await self._sessions.release(trial_id, state, reason)

    async def drain(self, trial_id: str | None = None) -> None:
        self._sessions.drain(trial_id)

    async def hold_back(self, until: float) -> None:
        """All sessions of a process share the client's back-off already."""

    async def make_room(self, trial_id: str | None = None) -> None:
        """What ended sessions left, the one that waits has unloaded: it is this process."""
        if trial_id is not None:
            await self._sessions.leave(trial_id)

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
        sessions: Callable[[SweepData, Pulse], SessionHost],
        data: SweepData,
    ) -> None:
        self.registry = registry
        self.telemetry = telemetry
        self.launcher = self
        self._sessions = sessions
        self._data = data

    def launch(self, slots: int) -> LocalHost:
        pulse = Pulse()
        return LocalHost(self._sessions(self._data, pulse), pulse)

    def renew(self, data: SweepData) -> None:
        """Hosts that are launched from now on are given these rows."""
        self._data = data

    def starting_at_once(self) -> int:
        return 1

    def packing(self, run: RunSection, sessions: int) -> Packing:
        """One host holds all sessions: processes are what Ray is for."""
        slots = max(1, min(run.most_concurrent, sessions))
        return Packing(slots, slots, run.max_concurrent == "auto")


@asynccontextmanager
async def local_executor(
    prepared: PreparedSweep,
    connection: Connection,
    writer: EventWriter,
    handlers: Mapping[str, Handler] | None = None,
) -> AsyncIterator[LocalExecutor]:
    """All of it in this process."""
    registry = Registry(prepared.paths, writer.run_id)
    try:
        telemetry = LocalTelemetry(Recorder(prepared.paths))
        sink = BufferedSink(writer, telemetry.record)

        def sessions(data: SweepData, pulse: Pulse) -> SessionHost:
            return SessionHost(
                connect=pulse.watching(connection.service.connect),
                registry=registry,
                sink=sink,
                data=data,
                sweep=prepared.name,
                handlers=handlers,
            )

        try:
            yield LocalExecutor(registry, telemetry, sessions, connection.data)
        finally:
            try:
                await sink.aclose()
            finally:  # also of a log that takes nothing more: its lock must not stay with us
                await telemetry.close()
    finally:
        registry.shut()
