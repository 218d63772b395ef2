"""One execution of an experiment: runs all its trials at the same time, and can resume.

Guarantees: whatever ends the driver, running the same experiment again continues from the last
checkpoints; a trial that fails does not stop the others; nothing per step crosses the driver.
Preparation and its refusals are in `preparation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crucible_tinkex.client.capabilities import SupportedModel
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.datasets import load_tokenizer
from crucible_tinkex.errors import ConfigError, CrucibleError, ServiceUnavailableError
from crucible_tinkex.manifest import write_manifest
from crucible_tinkex.preparation import PreparedSweep
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    TERMINAL,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.embedded import EmbeddedServer, Endpoint
from crucible_tinkex.runtime.handles import RegistryHandle, TelemetryHandle
from crucible_tinkex.runtime.pool import Member, SessionPool, SlotLostError
from crucible_tinkex.runtime.session_actor import Outcome, SweepContext, Verdict
from crucible_tinkex.session import SweepData
from crucible_tinkex.trial import TrialPlan

INTERRUPTED = "interrupted"
POLL_S = 0.5
WORTH_SHARING_S = 0.5


@dataclass(frozen=True)
class TrialView:
    """A trial as a person sees it now."""

    record: TrialRecord
    live: Mapping[str, Any]
    """Newest telemetry: `step` and the last value of every metric."""

    @property
    def step(self) -> int:
        return max(self.record.step, int(self.live.get("step", 0)))

    @property
    def waiting(self) -> Mapping[str, Any] | None:
        """What the service keeps it waiting for: `state`, `reason`, `resume_at`."""
        return self.live.get("waiting") if self.record.state == RUNNING else None

    def metric(self, name: str) -> float | None:
        """The newest value: telemetry first, then what the registry remembers of earlier runs."""
        newest = {**self.record.metrics, **self.live.get("metrics", {})}
        return newest.get(name)


@dataclass
class SweepView:
    """What a live display shows."""

    name: str
    phase: str = "starting"
    trials: Sequence[TrialView] = ()
    started: float = field(default_factory=time.monotonic)
    training_since: float | None = None
    steps_at_start: int | None = None
    """Steps that an earlier run had done, for an honest estimate of the time left."""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def training_s(self) -> float:
        since = self.training_since
        return 0.0 if since is None else time.monotonic() - since


Observer = Callable[[SweepView], None]


def ignore(view: SweepView) -> None:
    """The observer of nobody."""


@dataclass(frozen=True)
class SweepResult:
    """How a run ended."""

    state: SweepState
    exit_code: int


@dataclass(frozen=True)
class Connection:
    """A service that answers, and the data in its model's tokens."""

    endpoint: Endpoint | None
    """The embedded server, if it was started here."""
    model: SupportedModel
    data: SweepData


@contextlib.asynccontextmanager
async def connected(
    prepared: PreparedSweep, *, data_dir: Path | None = None
) -> AsyncIterator[Connection]:
    """Yield a `Connection`; start the embedded server if the experiment asks for it."""
    service = prepared.experiment.service
    server = None
    endpoint = None
    try:
        if service.embedded:
            base = prepared.experiment.model.base
            folder = data_dir or prepared.paths.service
            server = EmbeddedServer(service, model=base, data_dir=folder)
            endpoint = await server.start()
        yield await _check(prepared, endpoint)
    finally:
        if server:
            server.stop()


async def _check(prepared: PreparedSweep, endpoint: Endpoint | None) -> Connection:
    """Ask what the service has, and tokenise for it."""
    experiment = prepared.experiment
    client = TinkexService(
        base_url=endpoint.base_url if endpoint else experiment.service.base_url,
        api_key_file=endpoint.api_key_file if endpoint else experiment.service.api_key_file,
        allow_http=experiment.service.allow_http,
    )
    try:
        models = (await client.capabilities()).supported_models
    finally:
        await client.close()
    base = experiment.model.base
    model = next((m for m in models if m.model_name == base), None)
    if model is None and models:
        names = ", ".join(m.model_name for m in models)
        raise ConfigError(f"the service has no base model {base!r}; it has: {names}")
    # A service that names none says whether it has this one when a trial asks for it.
    model = model or SupportedModel(model_name=base)
    tokenizer = load_tokenizer(experiment.model.tokenizer or model.tokenizer_id or base)
    return Connection(endpoint, model, prepared.tokenised(tokenizer))


class SweepController:
    """Runs a prepared sweep on a runtime. One per execution."""

    def __init__(
        self,
        prepared: PreparedSweep,
        runtime: Runtime,
        connection: Connection,
        *,
        observer: Observer = ignore,
        view: SweepView | None = None,
    ) -> None:
        service = prepared.experiment.service
        endpoint = connection.endpoint
        self._prepared = prepared
        self._runtime = runtime
        self._data = connection.data
        self._registry = RegistryHandle(runtime.registry, prepared.paths)
        self._telemetry = TelemetryHandle(runtime.telemetry, prepared.paths)
        self._context = SweepContext(
            sweep_id=f"{prepared.name}-{uuid.uuid4().hex[:8]}",
            experiment_id=prepared.identity,
            paths=prepared.paths,
            base_url=endpoint.base_url if endpoint else service.base_url,
            api_key_file=endpoint.api_key_file if endpoint else service.api_key_file,
            allow_http=service.allow_http,
            transport=service.transport,
            registry=runtime.registry,
            telemetry=runtime.telemetry,
        )
        self._observer = observer
        self._view = view or SweepView(prepared.name)
        self._draining = asyncio.Event()
        self._stopped_by: CrucibleError | None = None

    def request_drain(self) -> None:
        """Finish the running steps, save, and stop; the sweep can be resumed."""
        self._draining.set()

    async def run(self) -> SweepResult:
        """Run what is left of the sweep. Raises the error that stops a whole sweep."""
        started = time.monotonic()
        meta = write_manifest(self._prepared)
        state = await self._registry.create(meta, [t.record() for t in self._prepared.trials])
        todo = [t for t in self._prepared.trials if state.trials[t.trial_id].state not in TERMINAL]
        ended = INTERRUPTED
        try:
            if todo:
                await self._registry.set_sweep(RUNNING)
                await self._run_trials(todo)
            state = await self._registry.state()
            if all(t.state in TERMINAL for t in state.trials.values()):
                ended = DONE
        finally:
            with contextlib.suppress(CrucibleError):
                await self._telemetry.close()
            wall_s = time.monotonic() - started if todo else 0.0
            await self._registry.set_sweep(ended, wall_s=wall_s)
            state = await self._registry.state()
            await self._registry.close()
        if self._stopped_by:
            raise self._stopped_by
        return SweepResult(state, exit_code(state))

    async def _run_trials(self, todo: Sequence[TrialPlan]) -> None:
        packing = self._runtime.packing(self._prepared.experiment.run, len(todo))
        pool = SessionPool(self._runtime, packing)
        data = self._runtime.share(self._data)
        watch = asyncio.create_task(self._watch(pool))
        drain = asyncio.create_task(self._drain_when_asked(pool))
        trials = [asyncio.create_task(self._run_trial(pool, t, data)) for t in todo]
        try:
            await asyncio.gather(*trials)
        finally:
            for task in (*trials, watch, drain):
                task.cancel()
            await asyncio.gather(*trials, watch, drain, return_exceptions=True)
            await pool.close(self._context.sweep_id)
            await self._refresh()

    async def _run_trial(self, pool: SessionPool, plan: TrialPlan, data: Any) -> None:
        """Run one trial to its end, over as many attempts as it takes."""
        losses, saved_step = 0, 0
        while not self._draining.is_set():
            member = await self._slot(pool)
            if member is None:
                return
            outcome = await self._attempt(pool, member, plan, data)
            if outcome.verdict is Verdict.STOP:
                self._stop(outcome.error)
            if outcome.verdict is not Verdict.RETRY:
                return
            step = (await self._registry.state()).trials[plan.trial_id].step
            losses = 1 if step > saved_step else losses + 1
            saved_step = max(step, saved_step)
            if losses >= self._prepared.experiment.run.max_attempts:
                await self._give_up(plan, outcome.error)
                return

    async def _slot(self, pool: SessionPool) -> Member | None:
        """A free slot, or None when the sweep drains first."""
        acquire = asyncio.ensure_future(pool.acquire())
        drain = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({acquire, drain}, return_when=asyncio.FIRST_COMPLETED)
            return acquire.result() if acquire.done() and not drain.done() else None
        finally:
            acquire.cancel()
            drain.cancel()

    async def _attempt(
        self, pool: SessionPool, member: Member, plan: TrialPlan, data: Any
    ) -> Outcome:
        try:
            outcome = await pool.advance(member, self._context, plan, data, plan.total_steps)
        except SlotLostError as e:
            return Outcome(Verdict.RETRY, error=CrucibleError(f"the session actor died: {e}"))
        pool.release(member)
        return outcome

    async def _give_up(self, plan: TrialPlan, error: CrucibleError | None) -> None:
        """Too many losses: an unreachable service stops the sweep, anything else the trial."""
        if isinstance(error, ServiceUnavailableError):
            self._stop(error)
            return
        grant = await self._registry.start_attempt(plan.trial_id)
        text = f"gave up after {self._prepared.experiment.run.max_attempts} attempts: {error}"
        await self._registry.finish(plan.trial_id, grant.attempt, FAILED, text)

    def _stop(self, error: CrucibleError | None) -> None:
        self._stopped_by = self._stopped_by or error
        self.request_drain()

    async def _drain_when_asked(self, pool: SessionPool) -> None:
        await self._draining.wait()
        self._view.phase = "draining: finishing the running steps and saving"
        await pool.drain(self._context.sweep_id)

    async def _watch(self, pool: SessionPool) -> None:
        self._view.phase = "training"
        self._view.training_since = time.monotonic()
        while True:
            await self._refresh()
            self._share_back_off(pool)
            await asyncio.sleep(POLL_S)

    def _share_back_off(self, pool: SessionPool) -> None:
        """Tell all session processes of the back-off that the service asked one of them for."""
        asked = [t.waiting["resume_at"] or 0.0 for t in self._view.trials if t.waiting]
        until = max(asked, default=0.0)
        if until > max(self._context.held_until, time.time()) + WORTH_SHARING_S:
            self._context = replace(self._context, held_until=until)
            pool.hold_back(self._context)

    async def _refresh(self) -> None:
        state, live = await asyncio.gather(self._registry.state(), self._telemetry.snapshot())
        self._view.trials = [
            TrialView(state.trials[t.trial_id], live.get(t.trial_id, {}))
            for t in self._prepared.trials
        ]
        if self._view.steps_at_start is None:
            self._view.steps_at_start = sum(t.record.step for t in self._view.trials)
        self._observer(self._view)


def exit_code(state: SweepState) -> int:
    """0 all done, 1 some failed, 130 something is left to do."""
    states = {t.state for t in state.trials.values()}
    if states & {PENDING, RUNNING}:
        return 130
    return 1 if FAILED in states else 0
