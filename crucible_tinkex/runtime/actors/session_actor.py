"""The session actor: one worker process, which holds the live sessions of the runs it serves.

It only carries calls to the `SessionHost` of a run and back; what a session does is no part of it.
Where the service is, it is told by the driver: its node's own environment is not asked. Imports
neither torch nor transformers, and no reader or writer of files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.runtime.actors.handles import RegistryHandle, TelemetryHandle
from crucible_tinkex.runtime.actors.pulse import Pulse
from crucible_tinkex.runtime.actors.relay import Relay, Told
from crucible_tinkex.runtime.ports import Beat
from crucible_tinkex.telemetry.sender import BufferedSink
from crucible_tinkex.telemetry.tracing.asked import Tracing
from crucible_tinkex.telemetry.tracing.run import joined
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.host import SessionHost
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan


@dataclass(frozen=True)
class RunContext:
    """What every session of a run shares. Holds the key's place, never the key."""

    run_id: str
    sweep_id: str
    experiment_id: str
    paths: SweepPaths
    service: ResolvedService
    registry: ActorHandle[Any]
    telemetry: ActorHandle[Any]
    tracing: Tracing | None = None
    is_heard: bool = False
    """The driver's process has handlers that its sessions are to tell."""


class _Run:
    """The sessions of one run in this process."""

    def __init__(self, context: RunContext, data: SweepData) -> None:
        self.service = context.service
        self.pulse = Pulse()
        telemetry = TelemetryHandle(context.telemetry, context.paths)
        writer = EventWriter(context.sweep_id, context.experiment_id, run_id=context.run_id)
        self._sink = BufferedSink(writer, telemetry.record)
        handlers, self._exporting = joined(context.tracing)
        self.relay = Relay()
        if context.is_heard:
            handlers = {**handlers, "driver": self.relay.tell}
        self.sessions = SessionHost(
            connect=self.pulse.watching(context.service.connect),
            registry=RegistryHandle(context.registry, context.paths, context.run_id),
            sink=self._sink,
            data=data,
            sweep=context.paths.root.name,
            handlers=handlers,
        )

    async def aclose(self) -> None:
        try:
            await self.sessions.aclose()
        finally:
            self.relay.close()
            try:
                await self._sink.aclose()
            finally:
                if self._exporting is not None:
                    await self._exporting.aclose()


class SessionActor:
    """Reused from trial to trial and from sweep to sweep. Every call names its run."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    async def pid(self) -> int:
        return os.getpid()

    async def open(self, context: RunContext, data: SweepData) -> None:
        """Make ready for a run; the other calls expect it."""
        self._runs[context.run_id] = _Run(context, data)

    async def heartbeat(self, run_id: str, after_s: float, known: float) -> Beat:
        """See `ports.Host`."""
        run = self._runs[run_id]
        return await run.pulse.beat(run.sessions, after_s, known)

    async def advance(self, run_id: str, plan: TrialPlan, to_step: int) -> Outcome:
        """Train a trial up to `to_step`; open its session first if it has none."""
        return await self._runs[run_id].sessions.advance(plan, to_step)

    async def release(self, run_id: str, trial_id: str, state: str, reason: str | None) -> None:
        """Close a parked session."""
        await self._runs[run_id].sessions.release(trial_id, state, reason)

    async def drain(self, run_id: str, trial_id: str | None = None) -> None:
        """Sessions finish their step, save, and stop: one, or all."""
        self._runs[run_id].sessions.drain(trial_id)

    async def hold_back(self, run_id: str, until: float) -> None:
        """Send nothing before `until` (Unix seconds)."""
        self._runs[run_id].service.hold_back(until)

    async def make_room(self, run_id: str, trial_id: str | None = None) -> None:
        """See `ports.Host`."""
        run = self._runs[run_id]
        if trial_id is None:
            await run.service.make_room()
        else:
            await run.sessions.leave(trial_id)

    async def told(self, run_id: str, known: int) -> Told:
        """See `Relay.after`."""
        return await self._runs[run_id].relay.after(known)

    async def forget(self, run_id: str) -> Told:
        """The run is over: leave its sessions, deliver what is left, drop what was kept; gives
        what handlers of the driver have not heard."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return Told(0, [])
        await run.aclose()
        return run.relay.rest()
