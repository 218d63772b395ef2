"""From a prepared experiment to a finished sweep in one blocking call: storage, server, executor.

Everything that could refuse is asked before anything is spent: the folder is locked and written
to, journal and event log are opened, the service answers. The first SIGINT or SIGTERM drains
(running steps finish and are saved), also while starting; the second ends the process at once.
Either way running the same experiment goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.errors import (
    ConfigError,
    CrucibleError,
    InterruptedSweepError,
    ServiceError,
    SweepBusyError,
    TrialFailedError,
)
from crucible_tinkex.events import EventWriter
from crucible_tinkex.registry import ATTESTED, LOST, SweepState
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.executor import RayExecutor
from crucible_tinkex.runtime.pool import SessionPool
from crucible_tinkex.storage import Lock, check_writable
from crucible_tinkex.sweep.attesting import Proofs
from crucible_tinkex.sweep.connection import Connection, connected, is_reachable
from crucible_tinkex.sweep.controller import Controller
from crucible_tinkex.sweep.facts import kept, loaded
from crucible_tinkex.sweep.keeping.keeper import Keeper
from crucible_tinkex.sweep.keeping.store import ServiceCheckpoints, registered
from crucible_tinkex.sweep.local import local_executor
from crucible_tinkex.sweep.notifying import ended, notify, trouble
from crucible_tinkex.sweep.orders.control import CODE, LASTING, Inbox
from crucible_tinkex.sweep.orders.hints import sweep_arguments
from crucible_tinkex.sweep.ports import Amendment, Executor
from crucible_tinkex.sweep.preparing.existing import COUNTS
from crucible_tinkex.sweep.preparing.manifest import write_manifest
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, extended, prepare
from crucible_tinkex.sweep.results.leaderboard import exit_code, trials_left
from crucible_tinkex.sweep.results.quality import misses_required
from crucible_tinkex.sweep.results.registering import register_best
from crucible_tinkex.sweep.results.views.view import Observer, SweepView, harmless, ignore
from crucible_tinkex.sweep.signals import Signals
from crucible_tinkex.telemetry.facts.fact import handler_of
from crucible_tinkex.telemetry.tracing.run import RunTrace, traced
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.user_calls import called

T = TypeVar("T")

MISSED_CODE = 1
"""A quality target that is required was missed."""
NEED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class SweepResult:
    """How a run ended."""

    state: SweepState
    exit_code: int
    left: int = 0
    """Trials that are still to be trained, at least, of all that the sweep asks for by now."""
    missed: bool = False
    """Whether a required quality target that was missed is the reason of the exit code."""


class Launch:
    """One run of a sweep. `run` blocks; `stop` may be called from any thread."""

    def __init__(
        self,
        prepared: PreparedSweep,
        *,
        address: str | None = None,
        runtime: Runtime | None = None,
        executor: Literal["ray", "local"] | None = None,
        observer: Observer = ignore,
        leave: Callable[[], object] = lambda: None,
        retry: Collection[str] = (),
        service: ResolvedService | None = None,
    ) -> None:
        """`retry`: failed trials to take up again, by id. `service`: as `connected` takes it.
        `leave` is called before a second signal ends the process: what the observer has on the
        screen is put in order there."""
        self._leave = leave
        self._retry = retry
        self._service = service
        self._prepared = prepared
        self._kind = executor or prepared.experiment.run.executor
        self._address = address
        self._runtime = runtime
        self._observer = harmless(observer)
        self._run_id = uuid.uuid4().hex[:12]
        self._proofs = Proofs(prepared, self._run_id)
        self._stop: Callable[[], object] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._proved = False
        self._earlier: list[str] = []
        self._trace = RunTrace()
        self._data: SweepData | None = None
        """What was read anew since the run began."""
        self.view = SweepView(prepared.name)

    def run(self, *, begun: Callable[[], object] = lambda: None) -> SweepResult:
        """Run or continue the sweep. `begun` is called once it is not another's that runs. Raises
        `CrucibleError`; see its `exit_code`."""
        paths = self._prepared.paths
        check_writable(paths.root, need_bytes=NEED_BYTES)
        lock = self._owned()
        try:
            begun()
            self._earlier = [c.command_id for c in Inbox(paths).waiting()]
            meta = write_manifest(self._prepared)
            finished = self._finished()
            if finished is not None:
                return self._judged(finished)
            return self._told(lambda: self._judged(asyncio.run(self._start(meta))))
        finally:
            lock.close()

    def _owned(self) -> Lock:
        """Raises `SweepBusyError` that says how to get at a sweep that runs."""
        paths = self._prepared.paths
        try:
            return Lock(paths.lock)
        except SweepBusyError as busy:
            where = sweep_arguments(paths)
            raise SweepBusyError(
                f"{busy.message}: `crucible watch {where}` follows it, `crucible extend {where}` "
                f"asks it for more, `crucible stop {where}` ends it; or choose another --name"
            ) from None

    def _told(self, work: Callable[[], SweepResult]) -> SweepResult:
        """Do the work, and tell whom `notify` names how it ended."""
        section, name = self._prepared.experiment.notify, self._prepared.name
        try:
            result = work()
        except CrucibleError as error:
            notify(section, trouble(name, error))
            raise
        notify(section, ended(name, result.state, result.exit_code, missed=result.missed))
        return result

    def _judged(self, result: SweepResult) -> SweepResult:
        """With the best registered, and the exit code that `[quality]` asks for."""
        paths = self._prepared.paths
        register_best(result.state, paths)
        if result.exit_code == 0 and misses_required(result.state, paths):
            return replace(result, exit_code=MISSED_CODE, missed=True)
        return result

    def _finished(self) -> SweepResult | None:
        """The result of a sweep in which nothing is left to do."""
        if self._prepared.existing is None or self._prepared.amendments:
            return None
        state = SweepState.read(self._prepared.paths)
        lost = any(t.state == LOST for t in state.trials.values())
        asked = any(c.kind in LASTING for c in Inbox(self._prepared.paths).waiting())
        undone = bool(state.buried) or not all(e.done for e in state.expiries.values())
        left = lost or asked or undone or bool(self._retry)
        return SweepResult(state, exit_code(state)) if state.complete and not left else None

    def stop(self) -> None:
        """Drain, or give up starting; before `run` it gives up as soon as it begins."""
        self._stopping = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(lambda: self._stop())

    async def _start(self, meta: dict[str, Any]) -> SweepResult:
        main = asyncio.current_task()
        assert main is not None
        self._loop = asyncio.get_running_loop()
        self._stop = main.cancel
        if self._stopping:
            main.cancel()
        try:
            with Signals(lambda: self._stop(), self._leave) as signals:
                async with AsyncExitStack() as stack:
                    state = await self._run(meta, stack, signals)
        except asyncio.CancelledError:
            raise InterruptedSweepError(
                "interrupted while starting; run the same command to continue"
            ) from None
        left = trials_left(state, self._prepared.policy().planned)
        return SweepResult(state, exit_code(state), left)

    async def _run(
        self, meta: dict[str, Any], stack: AsyncExitStack, signals: Signals
    ) -> SweepState:
        changed = self._prepared.amendments
        self._trace = await stack.enter_async_context(self._traced(meta))
        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(self._served(meta, stack))
                starting = group.create_task(self._cluster(stack, signals))
        except BaseExceptionGroup as failed:  # what fails first ends the other
            raise failed.exceptions[0] from None
        connection, runtime = serving.result(), starting.result()
        loaded(self._prepared)
        prepared = self._prepared = self._prepared.measured(connection.data)
        run = prepared.experiment.run
        if self._proved and prepared.existing:
            changed = [*changed, ATTESTED]
        if prepared.existing and prepared.objectives.code.keys() - prepared.existing.code.keys():
            changed = [*changed, CODE]
        executor = await stack.enter_async_context(self._executor(meta, connection, runtime))
        meta[COUNTS] = prepared.counts
        await executor.registry.create(meta)
        await executor.telemetry.changes(0)  # opens the event log: damage shows before spending
        policy = prepared.policy()
        packing = executor.packing(run, policy.planned)
        self.view.steps_each = prepared.planner.steps
        self.view.eval_every = prepared.experiment.train.eval_every
        self.view.evaluates = prepared.eval_rows is not None
        controller: Controller

        pool = SessionPool(
            executor.launcher, packing, done=lambda *ended: controller.outcome(*ended)
        )
        controller = Controller(
            run_id=self._run_id,
            registry=executor.registry,
            telemetry=executor.telemetry,
            pool=pool,
            policy=policy,
            planner=prepared.planner,
            max_attempts=run.max_attempts,
            view=self.view,
            observer=self._observer,
            retry=self._retry,
            inbox=Inbox(prepared.paths),
            earlier=self._earlier,
            amend=partial(self._amended, connection, executor, pool),
            keeper=self._keeper(executor, connection),
        )
        self._stop = controller.request_drain
        work: Awaitable[SweepState] = controller.run(meta, changed)
        if runtime is not None:
            work = runtime.unless_lost(work, drain=controller.request_drain)
        state = await work
        self._trace.ended(Counter(trial.state for trial in state.trials.values()))
        return state

    def _traced(self, meta: Mapping[str, Any]) -> AbstractAsyncContextManager[RunTrace]:
        experiment = self._prepared.experiment
        return traced(
            experiment.run.otlp_endpoint,
            sweep=self._prepared.name,
            sweep_id=meta["sweep_id"],
            run_id=self._run_id,
            base_model=experiment.model.base,
            executor=self._kind,
        )

    def _keeper(self, executor: Executor, connection: Connection) -> Keeper:
        storage = self._prepared.paths.root.parent
        return Keeper(
            executor.registry,
            ServiceCheckpoints(connection.service),
            partial(registered, storage),
            run_id=self._run_id,
            tell=kept(self._prepared.paths),
        )

    async def _amended(
        self,
        connection: Connection,
        executor: Executor,
        pool: SessionPool,
        settings: Mapping[str, Any],
    ) -> Amendment:
        """What the running sweep is with other settings. Reads its data again; trials that need
        more of it than this run has read get new hosts. Raises `ConfigError`."""
        paths = self._prepared.paths
        experiment = extended(self._prepared.experiment, settings, paths)
        storage, name = str(paths.root.parent), paths.root.name
        prepared = await _aside(partial(prepare, experiment, storage=storage, name=name))
        known = data = self._data or connection.data
        if not prepared.is_read(known):
            data = await _aside(partial(prepared.tokenised_as, known))
        prepared = prepared.measured(data)
        proof: dict[str, Any] = {}
        try:
            if await self._proofs.add(prepared, connection, executor.registry):
                proof[ATTESTED] = self._proofs.record
        except ServiceError as error:
            raise ConfigError(f"it could not be proved what the service applies: {error}") from None
        meta = await asyncio.to_thread(write_manifest, prepared)
        changed = prepared.amendments
        if data is not known:
            self._data = data
            executor.renew(data)
            pool.renew()
        self._prepared = prepared
        noted = {**meta, **proof, COUNTS: prepared.counts}
        return Amendment(prepared.policy(), prepared.planner, noted, changed)

    async def _served(self, meta: dict[str, Any], stack: AsyncExitStack) -> Connection:
        """The service, connected and proved. Beside the start of Ray: what it refuses shows at
        once, and what it takes costs no time."""
        connection = await stack.enter_async_context(
            connected(self._prepared, service=self._service)
        )
        if await self._proofs.add(self._prepared, connection):
            meta[ATTESTED] = self._proofs.record
            self._proved = True
        return connection

    async def _cluster(self, stack: AsyncExitStack, signals: Signals) -> Runtime | None:
        """Ray, started and warm, where it is the executor."""
        self._show("starting the service and the executor")
        if self._kind != "ray":
            return None
        runtime = self._runtime or await Runtime.start(self._address)
        if self._runtime is None:
            stack.callback(runtime.close)
            signals.install()  # Ray has put its own handlers in place
        self._warm(runtime)
        await runtime.ready()
        return runtime

    def _warm(self, runtime: Runtime) -> None:
        """Have processes for sessions start while the service does."""
        experiment = self._prepared.experiment
        reachable = is_reachable(experiment.service)
        sessions = self._prepared.policy().planned
        packing = runtime.packing(experiment.run, sessions, reachable=reachable)
        runtime.warm(packing, reachable=reachable)

    @asynccontextmanager
    async def _executor(
        self, meta: dict[str, Any], connection: Connection, runtime: Runtime | None
    ) -> AsyncIterator[Executor]:
        writer = EventWriter(meta["sweep_id"], self._prepared.fingerprint, run_id=self._run_id)
        handler = handler_of(self._prepared.paths.root.parent)
        if runtime is None:
            own = {} if handler is None else {"storage": handler}
            handlers = {**self._trace.handlers, **own}
            async with local_executor(self._prepared, connection, writer, handlers) as executor:
                yield executor
        else:
            ray_executor = RayExecutor(
                runtime,
                self._prepared.paths,
                run_id=self._run_id,
                service=connection.service,
                data=connection.data,
                writer=writer,
                tracing=self._trace.tracing,
                handler=handler,
            )
            try:
                yield ray_executor
            finally:
                await ray_executor.close()

    def _show(self, phase: str) -> None:
        self.view.phase = phase
        self._observer(self.view)


async def _aside(work: Callable[[], T]) -> T:
    """In a thread. Users' code that wants to end the process there is refused as other mistakes of
    an order are: the sweep goes on. Raises `ConfigError`."""
    try:
        return await called(work, what="the order", deadline_s=math.inf)
    except TrialFailedError as error:
        raise ConfigError(error.message) from error
