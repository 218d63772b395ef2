"""The live sessions of one sweep in one process: opened, advanced rung by rung, closed.

Errors leave as values (`Outcome`), judged by whose fault they are.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING

from crucible_tinkex.client.choose import open_service
from crucible_tinkex.errors import CrucibleError, TrialFailedError
from crucible_tinkex.events import EventWriter
from crucible_tinkex.registry import DONE, FAILED, PENDING
from crucible_tinkex.runtime.handles import RegistryHandle, TelemetryHandle
from crucible_tinkex.runtime.outcome import Outcome, Verdict, judge
from crucible_tinkex.session import Session, SweepData
from crucible_tinkex.telemetry.sender import BufferedSink
from crucible_tinkex.trial import TrialPlan

if TYPE_CHECKING:
    from crucible_tinkex.runtime.session_actor import SweepContext

log = logging.getLogger(__name__)


class SweepSessions:
    """Advances trials side by side; a session stays open between two rungs."""

    def __init__(self, context: SweepContext, data: SweepData) -> None:
        self._context = context
        self._data = data
        self._sink = BufferedSink(
            EventWriter(context.sweep_id, context.experiment_id),
            TelemetryHandle(context.telemetry, context.paths).record,
        )
        self._drain = asyncio.Event()
        self._sessions: dict[str, Session] = {}

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        session = self._sessions.get(plan.trial_id) or self._new_session(plan)
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
            sweep = self._context.paths.root.name
            e.with_context(sweep=sweep, trial=plan.run_name, step=session.step + 1)
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

    def _new_session(self, plan: TrialPlan) -> Session:
        context = self._context
        return Session(
            plan,
            self._data,
            connect=lambda observer: open_service(
                context.base_url,
                api_key_file=context.api_key_file,
                transport=context.transport,
                observer=observer,
            ),
            registry=RegistryHandle(context.registry, context.paths),
            sink=self._sink,
            drain=self._drain,
        )

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        session = self._sessions.pop(trial_id, None)
        if session:
            await session.close(state, reason)

    def drain(self) -> None:
        self._drain.set()

    async def aclose(self) -> None:
        await self._sink.aclose()
