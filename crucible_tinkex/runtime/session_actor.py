"""The session actor: many trials' sessions, one after another or packed, in one process.

Errors leave as values (`Outcome`), judged by whose fault they are. Imports neither torch nor
transformers, and no reader or writer of files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from ray.actor import ActorHandle

from crucible_tinkex.client.choose import hold_back, open_service
from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    CrucibleError,
    OperationFailedError,
    RequestRejectedError,
    StorageError,
    TrialFailedError,
)
from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, FAILED, PENDING
from crucible_tinkex.runtime.handles import RegistryHandle, TelemetryHandle
from crucible_tinkex.session import Progress, Session, SweepData
from crucible_tinkex.telemetry.sender import BufferedSink
from crucible_tinkex.trial import TrialPlan

log = logging.getLogger(__name__)


class Verdict(StrEnum):
    """What the controller should do with a trial after a call."""

    ADVANCED = "advanced"
    DRAINED = "drained"
    FAILED = "failed"
    """The trial is at fault; others go on."""
    RETRY = "retry"
    """The session was lost; a new attempt continues from the last checkpoint."""
    STOP = "stop"
    """Nothing can go on (key, bill, disk); the sweep stops and can be resumed."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `SessionActor.advance` ended. Errors are values: they cross processes."""

    verdict: Verdict
    progress: Progress | None = None
    error: CrucibleError | None = None


@dataclass(frozen=True)
class SweepContext:
    """What every session of a sweep shares. Holds the key's place, never the key."""

    sweep_id: str
    experiment_id: str
    paths: SweepPaths
    base_url: str | None
    api_key_file: str | None
    transport: Literal["http", "sdk"]
    registry: ActorHandle[Any]
    telemetry: ActorHandle[Any]
    allow_http: bool | tuple[str, ...] = False
    held_until: float = 0.0
    """Unix seconds before which nothing is sent: another process was asked to slow down."""


class SessionActor:
    """Holds one Tinkex session per running trial; reused from trial to trial and sweep to sweep."""

    def __init__(self) -> None:
        self._sinks: dict[str, BufferedSink] = {}
        self._drains: dict[str, asyncio.Event] = {}
        self._sessions: dict[str, Session] = {}

    async def pid(self) -> int:
        return os.getpid()

    async def advance(
        self, context: SweepContext, plan: TrialPlan, data: SweepData, to_step: int
    ) -> Outcome:
        """Train a trial up to `to_step`; open its session first if it has none."""
        await self.hold_back(context)
        session = self._sessions.get(plan.trial_id) or self._new_session(context, plan, data)
        try:
            if plan.trial_id not in self._sessions:
                self._sessions[plan.trial_id] = session
                await session.open()
            progress = await session.advance(to_step)
            if progress.drained or progress.step == plan.total_steps:
                await session.close(PENDING if progress.drained else DONE)
                del self._sessions[plan.trial_id]
            verdict = Verdict.DRAINED if progress.drained else Verdict.ADVANCED
            return Outcome(verdict, progress)
        except CrucibleError as e:
            e.with_context(
                sweep=context.paths.root.name, trial=plan.run_name, step=session.step + 1
            )
            return await self._ended(session, plan, e)
        except Exception as e:
            log.exception("trial %s failed unexpectedly", plan.run_name)
            text = "".join(traceback.format_exception_only(e)).strip()
            error = TrialFailedError(f"unexpected {text}", trial=plan.run_name)
            return await self._ended(session, plan, error)

    async def _ended(self, session: Session, plan: TrialPlan, error: CrucibleError) -> Outcome:
        """Give the session up; tell the registry if the trial itself is at fault."""
        self._sessions.pop(plan.trial_id, None)
        verdict = judge(error)
        try:
            if verdict is Verdict.FAILED and session.attempt:
                await session.close(FAILED, str(error))
            else:
                await session.leave(PENDING)
        except CrucibleError as e:
            return Outcome(judge(e), error=e)
        return Outcome(verdict, error=error)

    def _new_session(self, context: SweepContext, plan: TrialPlan, data: SweepData) -> Session:
        return Session(
            plan,
            data,
            connect=lambda observer: open_service(
                context.base_url,
                api_key_file=context.api_key_file,
                allow_http=context.allow_http,
                transport=context.transport,
                observer=observer,
            ),
            registry=RegistryHandle(context.registry, context.paths),
            sink=self._sink(context),
            drain=self._drains.setdefault(context.sweep_id, asyncio.Event()),
        )

    def _sink(self, context: SweepContext) -> BufferedSink:
        if context.sweep_id not in self._sinks:
            self._sinks[context.sweep_id] = BufferedSink(
                EventWriter(context.sweep_id, context.experiment_id),
                TelemetryHandle(context.telemetry, context.paths).record,
            )
        return self._sinks[context.sweep_id]

    async def drain(self, sweep_id: str) -> None:
        """Sessions of this sweep finish their step, save, and stop."""
        self._drains.setdefault(sweep_id, asyncio.Event()).set()

    async def hold_back(self, context: SweepContext) -> None:
        """Send nothing before `context.held_until`."""
        if context.held_until:
            hold_back(
                context.base_url,
                api_key_file=context.api_key_file,
                until=context.held_until,
                allow_http=context.allow_http,
            )

    async def forget(self, sweep_id: str) -> None:
        """The sweep is over: deliver what is left and drop what was kept for it."""
        self._drains.pop(sweep_id, None)
        sink = self._sinks.pop(sweep_id, None)
        if sink:
            await sink.aclose()


def judge(error: CrucibleError) -> Verdict:
    """Whose fault an error is, and so what happens next."""
    if isinstance(error, AuthenticationError | BillingError | StorageError):
        return Verdict.STOP
    if isinstance(error, OperationFailedError):
        return Verdict.RETRY if error.category == "server" else Verdict.FAILED
    if isinstance(error, TrialFailedError | RequestRejectedError | ConfigError):
        return Verdict.FAILED
    return Verdict.RETRY
