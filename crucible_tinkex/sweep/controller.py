"""The event loop of a sweep: asks the policy, journals what it decides, then acts.

Guarantees: nothing is done that was not journalled first; the controller knows only what the
journal says, so whatever ends it, the next run goes on from there; a trial that fails, or is lost,
stops no other; every wait ends when the sweep is asked to drain. Nothing per step passes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crucible_tinkex.errors import (
    ConfigError,
    CrucibleError,
    ServiceStorageError,
    ServiceUnavailableError,
    StaleAttemptError,
)
from crucible_tinkex.registry import (
    DONE,
    INTERRUPTED,
    LOST,
    PAUSED,
    PENDING,
    RUNNING,
    STOPPED,
    TERMINAL,
    ControlPort,
    Decision,
    Spent,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.runtime.pool import SessionPool
from crucible_tinkex.sweep.deciding.failing import Losses
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.keeping.keeper import Keeper
from crucible_tinkex.sweep.orders.control import CODE, LASTING, REFUSED, Command, Inbox
from crucible_tinkex.sweep.orders.obeying import extended_answer, obey
from crucible_tinkex.sweep.ports import Amend, Amendment, TelemetryPort
from crucible_tinkex.sweep.preparing.objectives import is_learning
from crucible_tinkex.sweep.results.views.shown import Shown
from crucible_tinkex.sweep.results.views.view import Observer, SweepView, ignore
from crucible_tinkex.training.outcome import Outcome, Verdict

REFRESH_S = 0.5
DRAIN_S = 30.0
"""How long a draining sweep waits for its sessions to save; what is not saved is trained again."""


@dataclass(frozen=True)
class _Ended:
    """A session answered."""

    trial_id: str
    outcome: Outcome


class Controller:
    """Runs one sweep once. `run` may be cancelled; the sweep can then be resumed."""

    def __init__(
        self,
        *,
        run_id: str,
        registry: ControlPort,
        telemetry: TelemetryPort,
        pool: SessionPool,
        policy: Policy,
        planner: Planner,
        max_attempts: int,
        view: SweepView,
        observer: Observer = ignore,
        retry: Collection[str] = (),
        drain_s: float = DRAIN_S,
        inbox: Inbox | None = None,
        earlier: Collection[str] = (),
        amend: Amend | None = None,
        keeper: Keeper | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry`: failed trials to take up again. `earlier`: ids of the commands that waited when
        this run began. `amend`: what the sweep is with other settings; without it `extend` is
        refused."""
        self._run_id = run_id
        self._registry = registry
        self._pool = pool
        self._policy = policy
        self._planner = planner
        self._max_attempts = max_attempts
        self._view = view
        self._retry = retry
        self._drain_s = drain_s
        self._inbox = inbox
        self._earlier = earlier
        self._amend = amend
        self._keeper = keeper
        self._clock = clock
        self._started = clock()
        self._happened = asyncio.Event()
        self._ended: list[_Ended] = []
        self._draining = asyncio.Event()
        self._stopped_by: CrucibleError | None = None
        self._state = SweepState()
        self._seen = 0
        self._submitted: set[str] = set()
        self._releasing: set[str] = set()
        self._losses: dict[str, Losses] = {}
        self._ops = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._shown = Shown(view, telemetry, observer)

    def outcome(self, trial_id: str, outcome: Outcome) -> None:
        """A session answered: what the pool calls."""
        self._ended.append(_Ended(trial_id, outcome))
        self._happened.set()

    def request_drain(self) -> None:
        """Finish the running steps, save, and stop; the sweep can be resumed."""
        self._draining.set()
        self._happened.set()

    async def run(self, meta: Mapping[str, Any], changed: Sequence[str] = ()) -> SweepState:
        """Run what is left of the sweep. Raises the error that stops a whole sweep."""
        self._started = self._clock()
        await self._registry.create(meta)
        if changed:
            await self._registry.amend(meta, changed, self._op())
        await self._registry.set_sweep(RUNNING, self._op())
        ended = INTERRUPTED
        try:
            await self._train()
            ended = DONE if self._state.complete else INTERRUPTED
        finally:
            await self._registry.set_sweep(ended, self._op(), self._clock() - self._started)
            await self._sync()
        if self._stopped_by:
            raise self._stopped_by
        return self._state

    async def _train(self) -> None:
        self._view.phase, self._view.training_since = "training", time.monotonic()
        watch = asyncio.create_task(self._watch())
        try:
            await self._sync()
            await self._decide(self._policy.resume(self._state, retry=self._retry))
            await self._obey_earlier()
            await self._loop()
            if self._keeper and not self._stopped_by:
                await self._keeper.finish(self._state, self._draining)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._pool.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._keeper.close() if self._keeper else None
            await self._sync()
            with contextlib.suppress(CrucibleError):
                await self._refresh()

    async def _loop(self) -> None:
        while not self._draining.is_set():
            await self._obey()
            while decisions := await self._decisions():
                await self._decide(decisions)
            if self._keeper:
                await self._keeper.look(self._state)
            self._submit()
            if self._state.ended is not None and not self._state.active and not self._answering:
                return
            await self._next()
        await self._drain()

    async def _decisions(self) -> list[Decision]:
        """A slow choice is made in a thread; what it reads only this task writes, and it waits."""
        decide = partial(
            self._policy.decide,
            self._state,
            slots=self._pool.capacity,
            answering=self._answering,
            wall_s=self._clock() - self._started,
        )
        return await asyncio.to_thread(decide) if self._policy.is_slow else decide()

    @property
    def _answering(self) -> set[str]:
        """Trials whose sessions have not answered yet. One that is done in the journal may not
        have left the service."""
        return self._submitted | self._releasing

    async def _next(self) -> None:
        """Wait until something happened; then know all of it."""
        await self._happened.wait()
        self._happened.clear()
        ended, self._ended = self._ended, []
        await self._sync()
        for end in ended:
            self._submitted.discard(end.trial_id)
            await self._handle(end)
        if any(end.outcome.verdict is Verdict.RETRY for end in ended):
            await self._sync()

    async def _sync(self) -> None:
        """Fold what the journal got since the last time."""
        changes = await self._registry.changes(self._seen)
        self._state.fold(changes.records)
        self._seen = changes.until

    async def _decide(self, decisions: Sequence[Decision], op: str | None = None) -> None:
        """Journal the decisions, then act on those that end something."""
        if not decisions:
            return
        await self._registry.decide(decisions, op or self._op())
        await self._sync()
        for decision in decisions:
            if decision.kind in ("pause", "stop"):
                self._leave(decision.trial_id, decision.reason)

    def _leave(self, trial_id: str, reason: str) -> None:
        """Have the session of a trial that was paused or stopped end, whatever it does just now."""
        if trial_id not in self._submitted:
            self._releasing.add(trial_id)
            self._background(self._release(trial_id, reason))
        elif self._pool.withdraw(trial_id):
            self._submitted.discard(trial_id)
        else:
            self._background(self._pool.interrupt(trial_id))

    async def _release(self, trial_id: str, reason: str) -> None:
        """Close a parked session. Only then may the trial go on."""
        try:
            await self._pool.release(trial_id, self._state.trials[trial_id].state, reason)
        finally:
            self._releasing.discard(trial_id)
            self._happened.set()

    # --- commands -----------------------------------------------------------------------------

    async def _obey_earlier(self) -> None:
        """What was sent to the run before and came too late for it."""
        for command in self._inbox.waiting() if self._inbox else ():
            if command.kind not in LASTING and command.command_id in self._earlier:
                await self._answer(command, [], f"{REFUSED}the run that it was meant for has ended")

    async def _obey(self) -> None:
        """Do what persons ask for, each command once."""
        commands = self._inbox.waiting() if self._inbox else []
        for command in commands:
            if command.op in self._state.ops:
                self._drop(command)
                continue
            if command.kind in ("unpause", "extend") and self._pausing:
                continue  # again when those sessions have left
            try:
                if command.kind == "extend":
                    decisions, answer = await self._extend(command)
                else:
                    await self._learn(command)
                    decisions, answer = obey(self._state, self._policy, self._planner, command)
            except ConfigError as error:
                decisions, answer = [], f"{REFUSED}{error}"
            await self._answer(command, decisions, answer)
            if command.kind == "stop" and not command.trials:
                self.request_drain()

    @property
    def _pausing(self) -> bool:
        """Whether a session has still to hear, or to say, that its trial is paused."""
        return any(self._state.trials[i].state == PAUSED for i in self._answering)

    async def _answer(self, command: Command, decisions: list[Decision], answer: str) -> None:
        await self._decide([command.answered(answer), *decisions], command.op)
        self._drop(command)

    def _drop(self, command: Command) -> None:
        if self._inbox:
            self._inbox.drop(command)

    async def _extend(self, command: Command) -> tuple[list[Decision], str]:
        """Amend the running sweep; trials on their way go further when they come to their rung."""
        if self._amend is None:
            raise ConfigError("this sweep cannot be extended while it runs")
        amendment = await self._amend(command.settings)
        if not amendment.changed:
            return [], "extend: it asks for that already"
        await self._take(amendment, amendment.changed, command)
        taken_up = self._policy.amended(self._state, answering=self._answering)
        reached = self._policy.budget.reached(self._state, self._clock() - self._started)
        return taken_up, extended_answer(amendment.changed, reached)

    async def _learn(self, command: Command) -> None:
        """A clone may learn by what the sweep does not know, or has no texts for, yet."""
        if command.kind == "clone" and self._amend and any(map(is_learning, command.settings)):
            await self._take(await self._amend({}), [CODE], command)

    async def _take(self, amendment: Amendment, changed: Sequence[str], command: Command) -> None:
        await self._registry.amend(amendment.meta, changed, f"{command.op}:amend")
        self._policy, self._planner = amendment.policy, amendment.planner
        await self._sync()

    def _submit(self) -> None:
        """Hand the pool every trial that should train and does not."""
        for trial in self._state.active.values():
            if trial.trial_id not in self._submitted and trial.is_waiting:
                self._submitted.add(trial.trial_id)
                self._pool.submit(self._planner.of(trial), trial.target)

    # --- how sessions end ---------------------------------------------------------------------

    async def _handle(self, end: _Ended) -> None:
        trial = self._state.trials[end.trial_id]
        if trial.state in TERMINAL:
            self._losses.pop(end.trial_id, None)
            self._planner.forget(end.trial_id)
        if trial.state in (PAUSED, STOPPED):  # decided while it was on its way to its rung
            self._leave(trial.trial_id, trial.error or "paused")
        elif trial.state == DONE:
            await self._decide(self._policy.further(trial))
        if end.outcome.verdict is Verdict.STOP:
            self._stop(end.outcome.error)
        elif end.outcome.verdict is Verdict.RETRY:
            await self._lost(trial, end.outcome.error)

    async def _lost(self, trial: TrialRecord, error: CrucibleError | None) -> None:
        """Try again, unless it was lost too often without progress."""
        losses = self._losses.setdefault(trial.trial_id, Losses())
        if losses.again(trial.step) < self._max_attempts or self._draining.is_set():
            await self._take_back_announced(trial)
            return
        if isinstance(error, ServiceUnavailableError | ServiceStorageError):
            self._stop(error)  # not this trial's trouble: nobody else could go on either
            return
        grant = await self._registry.start_attempt(trial.trial_id)
        text = f"lost {losses.count} times without progress: {error}"
        await self._registry.finish(trial.trial_id, grant.attempt, LOST, text, Spent())

    async def _take_back_announced(self, trial: TrialRecord) -> None:
        """What a lost session was to use: others wait for its evaluation (`allowance`), and it may
        be they that hold the slots without which the trial cannot go on."""
        if trial.state == RUNNING and self._policy.budget.capped:
            spent = trial.spends.get(trial.attempt, Spent())
            with contextlib.suppress(StaleAttemptError):  # a new one has begun
                await self._registry.record_spend(trial.trial_id, trial.attempt, spent)

    def _stop(self, error: CrucibleError | None) -> None:
        self._stopped_by = self._stopped_by or error
        self.request_drain()

    async def _drain(self) -> None:
        """Let sessions save; those that cannot in time are left to their last checkpoints."""
        self._view.phase = "draining: finishing the running steps and saving"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._pool.drain()
                self._submitted -= {i for i in self._submitted if self._pool.withdraw(i)}
                while self._answering:
                    await self._next()
                parked = [t.trial_id for t in self._state.active.values() if t.parked]
                await asyncio.gather(*(self._pool.release(i, PENDING, None) for i in parked))

    # --- what people see ----------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            wider = self._pool.capacity > self._view.slots
            await self._refresh()
            if wider or self._policy.budget.capped or (self._inbox and self._inbox.waiting()):
                self._happened.set()
            await asyncio.sleep(REFRESH_S)

    async def _refresh(self) -> None:
        self._view.planned, self._view.slots = self._policy.planned, self._pool.capacity
        if not self._draining.is_set():
            self._view.phase = PAUSED if self._state.held else "training"
        await self._shown.refresh(self._state)

    # --- small things -------------------------------------------------------------------------

    def _op(self) -> str:
        """The name of the next operation: unique, and the same when the call is repeated."""
        self._ops += 1
        return f"{self._run_id}:{self._ops}"

    def _background(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
