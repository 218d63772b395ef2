"""The live sessions of one sweep in one process, on one event loop.

A session that reached its rung stays open (parked) until it is sent further or released; a trial
that this host does not hold is opened from its newest checkpoint, so it may move between hosts.
Errors leave as values (`Outcome`), judged by whose fault they are. This is the border where also
what nobody foresaw becomes a value: it ends one trial, not the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial

from crucible_tinkex.client.http.watch import Observer, Observers, QueueState
from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.errors import CrucibleError, TrialFailedError
from crucible_tinkex.events import EventSink
from crucible_tinkex.registry import DONE, FAILED, PENDING, RegistryPort, Spent
from crucible_tinkex.telemetry.bridge import Bridge, Handler
from crucible_tinkex.training.attempt.drain import DrainedError, contained, unless_drained
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.attempt.session import Session
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.outcome import After, Outcome, Verdict, judge
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Recipe, RecipeMaker
from crucible_tinkex.training.recipes.sft import SupervisedRecipe
from crucible_tinkex.user_calls import called

HELD_S = 2.0
"""How long a draining session waits for a service that just now lets nothing through."""

log = logging.getLogger(__name__)


def recipe_of(plan: TrialPlan, data: SweepData) -> Recipe:
    """The recipe that the experiment asks for."""
    if plan.experiment.train.adapter is None or plan.reference:
        return SupervisedRecipe(plan, data)
    # Brings the adapter's sessions along, which few trials need.
    from crucible_tinkex.training.recipes.adapted import AdaptedRecipe

    return AdaptedRecipe(plan, data)


class SessionHost:
    """See the module. `connect` makes the service of one session, which tells its observer what
    the session waits for. At most one call per trial at a time."""

    def __init__(
        self,
        *,
        connect: Callable[[Observer], TrainingService],
        registry: RegistryPort,
        sink: EventSink,
        data: SweepData,
        sweep: str,
        clock: Callable[[], float] = time.perf_counter,
        recipe: RecipeMaker = recipe_of,
        drain_s: float = 20.0,
        handlers: Mapping[str, Handler] | None = None,
    ) -> None:
        """`handlers`, by id, hear what the sessions do, each with its trial. `drain_s`: how long a
        session may take to finish its step and to save when asked to drain. One that takes longer,
        or that the service keeps waiting then (`HELD_S`), ends where its last checkpoint is."""
        self._connect = connect
        self._registry = registry
        self._sink = sink
        self._data = data
        self._sweep = sweep
        self._clock = clock
        self._recipe = recipe
        self._drain_s = drain_s
        self._handlers = handlers or {}
        self._drain = asyncio.Event()
        self._sessions: dict[str, Session] = {}
        self._coming: dict[str, asyncio.Event] = {}
        """The `drain` of sessions that are not made yet, for users' code may take long: set, they
        are not made."""
        self.tokens = 0
        """Trained here so far."""

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        """Train a trial up to `to_step`; open its session first if it has none here.

        A rung that was reached before is answered from memory. At the trial's last step the session
        is closed.
        """
        try:
            return await contained(self._advance(plan, to_step))
        except CrucibleError as e:
            return await self._ended(plan, e)
        except Exception as e:
            log.exception("trial %s failed unexpectedly", plan.run_name)
            text = "".join(traceback.format_exception_only(e)).strip()
            return await self._ended(plan, TrialFailedError(f"unexpected {text}"))

    async def _advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        if self._drain.is_set():
            return await self._drained(plan)
        try:
            session = await self._opened(plan)
            grace = partial(self._grace_s, session)
            progress = await unless_drained(
                session.advance(to_step), session.drain, grace=grace, context=session.context
            )
        except DrainedError:
            return await self._drained(plan)
        if progress.drained:
            return await self._drained(plan)
        if progress.step >= plan.total_steps:
            await session.close(DONE)
            self._sessions.pop(plan.trial_id, None)  # `aclose` may have been faster
        return Outcome(Verdict.ADVANCED, progress)

    async def _opened(self, plan: TrialPlan) -> Session:
        session = self._sessions.get(plan.trial_id)
        if session is None:
            session = self._sessions[plan.trial_id] = await self._made(plan)
            await unless_drained(session.open(), session.drain, context=session.context)
        return session

    async def _made(self, plan: TrialPlan) -> Session:
        """Raises `DrainedError` where it is asked to drain meanwhile."""
        drain = self._coming[plan.trial_id] = asyncio.Event()
        try:
            return await unless_drained(self._new_session(plan, drain), drain)
        finally:
            del self._coming[plan.trial_id]

    def _grace_s(self, session: Session) -> float:
        return min(HELD_S, self._drain_s) if session.is_held else self._drain_s

    async def _drained(self, plan: TrialPlan) -> Outcome:
        session = self._sessions.get(plan.trial_id)
        if session is None:
            return Outcome(Verdict.DRAINED)
        progress = session.progress(drained=True)
        await session.close(PENDING)
        self._sessions.pop(plan.trial_id, None)
        return Outcome(Verdict.DRAINED, progress)

    async def _ended(self, plan: TrialPlan, error: CrucibleError) -> Outcome:
        """Give the session up; tell the registry what was spent, and who is at fault."""
        session = self._sessions.pop(plan.trial_id, None)
        step = None if session is None else min(session.step + 1, plan.total_steps)
        error.with_context(sweep=self._sweep, trial=plan.run_name, step=step)
        verdict = judge(error)
        try:
            if verdict is Verdict.FAILED:
                await self._fail(plan, session, str(error))
            elif session is not None:
                with contextlib.suppress(CrucibleError):  # the first error is the one to be told
                    await session.give_up(str(error))
        except CrucibleError as e:
            return Outcome(judge(e), error=e)
        return Outcome(verdict, error=error)

    async def _fail(self, plan: TrialPlan, session: Session | None, error: str) -> None:
        """A trial that failed before it began has failed all the same."""
        if session is not None:
            await session.close(FAILED, error)
        if session is None or not session.attempt:
            grant = await self._registry.start_attempt(plan.trial_id)
            await self._registry.finish(plan.trial_id, grant.attempt, FAILED, error, Spent())

    async def _new_session(self, plan: TrialPlan, drain: asyncio.Event) -> Session:
        data = self._data.of(plan.experiment.data)
        if plan.code:
            recipe = await called(self._recipe, plan, data, what=", ".join(plan.code))
        else:
            recipe = self._recipe(plan, data)
        reporter = Reporter(self._sink, plan.trial_id, recipe.epoch, self._clock)
        bridge = Bridge(self._sweep, trial_id=plan.trial_id, run_name=plan.run_name)
        for handler_id, handler in self._handlers.items():
            bridge.attach(handler_id, handler)
        return Session(
            plan,
            recipe,
            service=self._connect(Observers(reporter, bridge) if self._handlers else reporter),
            registry=self._registry,
            reporter=reporter,
            drain=drain,
            clock=self._clock,
            after=self._steps(plan),
            trained=self._trained,
            bridge=bridge,
        )

    def _trained(self, tokens: int) -> None:
        self.tokens += tokens

    def _steps(self, plan: TrialPlan) -> After | None:
        if plan.reference or not plan.experiment.steps.any:
            return None
        from crucible_tinkex.training.trial_steps import run_steps

        return partial(run_steps, plan, self._data)

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        """Close a parked session as paused, stopped or pending; nothing if there is none."""
        session = self._sessions.pop(trial_id, None)
        if session is not None:
            await session.close(state, reason)

    @property
    def waiting(self) -> dict[str, QueueState]:
        """Trials that the service keeps waiting for their models, and what it said."""
        waits = {i: session.waits_for_place for i, session in self._sessions.items()}
        return {trial_id: state for trial_id, state in waits.items() if state}

    async def leave(self, trial_id: str) -> None:
        """Give a parked session's place up without a word to the registry: its rung was saved, and
        the trial goes on from there in a new session. Nothing if there is none."""
        session = self._sessions.pop(trial_id, None)
        if session is not None:
            await session.leave(PENDING)

    def drain(self, trial_id: str | None = None) -> None:
        """Sessions that train finish their step, save, and stop; parked ones stay, to be released.
        Trials that come later do not begin. With `trial_id`: that one session, if it is here."""
        if trial_id is None:
            self._drain.set()
        for session in list(self._sessions.values()):
            if trial_id in (None, session.trial_id):
                session.drain.set()
        for coming, drain in self._coming.items():
            if trial_id in (None, coming):
                drain.set()

    async def aclose(self) -> None:
        """Leave every session as it is, and deliver what telemetry still holds. What would come is
        not begun."""
        for drain in self._coming.values():
            drain.set()
        sessions = list(self._sessions.values())
        self._sessions.clear()
        await asyncio.gather(*(session.leave(PENDING) for session in sessions))
        await self._sink.flush()
