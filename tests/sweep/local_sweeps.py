"""Sweeps in this process on the fake service and a virtual clock: real registry, sessions, pool,
policy and controller; hosts that a test may kill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.section import set_dotted
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import HostLostError, ServiceUnavailableError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Registry, SweepState
from crucible_tinkex.runtime.actors.pulse import Pulse
from crucible_tinkex.runtime.pool import SessionPool
from crucible_tinkex.runtime.ports import Beat, Packing
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.sweep.controller import Controller
from crucible_tinkex.sweep.deciding.budget import Budget
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.sweep.keeping.keeper import Keeper
from crucible_tinkex.sweep.orders.control import Inbox
from crucible_tinkex.sweep.ports import Amendment
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.views.view import SweepView
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.host import SessionHost
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan

SPACE = {"lora.rank": [2, 8], "optimizer.learning_rate": [1e-5, 1e-3, 1e-2]}


def _rows(count: int, start: int) -> TokenisedDataset:
    rows = [[(start + 3 * r + i) % 50 + 1 for i in range(6)] + [0] for r in range(count)]
    mask = np.array([i >= 4 for _ in rows for i in range(7)], np.uint8)
    return TokenisedDataset(
        tokens=np.concatenate([np.array(row, np.int32) for row in rows]),
        mask=mask,
        offsets=np.arange(count + 1, dtype=np.int64) * 7,
        prompt_lengths=np.full(count, 4, np.int32),
        eos_id=0,
        truncated=0,
        has_prompts=True,
        fingerprint="x",
    )


def make_data(*, rows: int, evaluated: int) -> SweepData:
    return SweepData(_rows(rows, 1), _rows(evaluated, 2), "fingerprint", None)


DATA = make_data(rows=20, evaluated=5)


def make_experiment(**changes: Any) -> Experiment:
    """`train={...}`, `search={...}`, `run={...}` are merged into a small sweep of 6 + 1 trials."""
    declared: dict[str, Any] = {
        "name": "s",
        "model": {"base": "nano"},
        "data": {"train": "x", "eval": "y"},
        "train": {"max_steps": 8, "batch_size": 4, "checkpoint_every": 4},
        "search": {"space": SPACE, "metric": "eval/nll"},
        "run": {"max_concurrent": 3},
    }
    for section, values in changes.items():
        declared[section] = {**declared.get(section, {}), **values}
    return Experiment.build(declared)


def policy_of(experiment: Experiment, *, rows: int = 20) -> tuple[Planner, Policy]:
    planner = Planner(experiment, rows=rows, fingerprint="f")
    return planner, Policy(
        planner,
        trials_of(planner, configurations(experiment)),
        stopping_rule(experiment.search),
        objective=Objective.asked(experiment),
        budget=Budget(experiment.budget),
    )


class NoTelemetry:
    """Nobody looks."""

    async def changes(self, since: int) -> None:
        return None

    async def close(self) -> None:
        return None


class FakeStore:
    """The checkpoints of the fake service; `failing` says how often it is out of reach."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.failing = 0
        self.deleted: list[str] = []
        self.ttls: dict[str, int | None] = {}

    async def _reached(self) -> None:
        await asyncio.sleep(0.01)
        if self.failing:
            self.failing -= 1
            raise ServiceUnavailableError("no answer")

    async def delete(self, path: str) -> None:
        await self._reached()
        self.backend.checkpoints.pop(path, None)
        self.deleted.append(path)

    async def set_ttl(self, path: str, ttl_s: int | None) -> None:
        await self._reached()
        self.ttls[path] = ttl_s

    async def close(self) -> None:
        return None


class NoSink:
    def emit(self, kind: str, **fields: Any) -> None:
        return None

    async def flush(self) -> None:
        return None


@dataclass(eq=False)
class MortalHost:
    """A host on a `SessionHost`; `die` ends it as a killed process would: without a word. One that
    dies silently for others goes on by itself (a network that is cut)."""

    sessions: SessionHost
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    calls: set[asyncio.Task[Any]] = field(default_factory=set)
    cut: bool = False

    def die(self, *, silently: bool = False) -> None:
        self.gone.set()
        self.cut = self.cut or silently
        for call in () if self.cut else self.calls:
            call.cancel()

    async def _alive(self, work: Any) -> Any:
        if self.gone.is_set():
            work.close()
            raise HostLostError("killed")
        call = asyncio.ensure_future(work)
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        gone = asyncio.ensure_future(self.gone.wait())
        await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if call.cancelled() or self.gone.is_set():
            raise HostLostError("killed")
        return call.result()

    async def ready(self) -> None:
        await asyncio.sleep(0.5)

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        await self._alive(asyncio.sleep(after_s))
        return await Pulse().beat(self.sessions, 0.0, 0.0)

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        outcome: Outcome = await self._alive(self.sessions.advance(plan, to_step))
        return outcome

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await self._alive(self.sessions.release(trial_id, state, reason))

    async def drain(self, trial_id: str | None = None) -> None:
        self.sessions.drain(trial_id)

    async def hold_back(self, until: float) -> None:
        return None

    async def make_room(self, trial_id: str | None = None) -> None:
        if trial_id is not None:
            await self._alive(self.sessions.leave(trial_id))

    async def forget(self) -> None:
        await self._alive(self.sessions.aclose())

    def kill(self) -> None:
        self.die()

    def keep(self) -> None:
        return None


class Bench:
    """One sweep, over as many runs as a test wants."""

    def __init__(self, folder: Path, *, backend: FakeBackend | None = None, **changes: Any) -> None:
        self.paths = SweepPaths.of(folder, "s")
        self.backend = backend or FakeBackend(delay_s=0.1)
        self.experiment = make_experiment(**changes)
        self.hosts: list[MortalHost] = []
        self.runs = 0
        self.controller: Controller | None = None
        self.view = SweepView("s")
        self.retry: Sequence[str] = ()
        self.inbox = Inbox(self.paths)
        self.is_starting = False
        """What waits in the inbox was sent to the next run."""
        self.clock: Callable[[], float] = time.monotonic
        self.store = FakeStore(self.backend)
        self.models: dict[str, list[str]] = {}

    @property
    def state(self) -> SweepState:
        return SweepState.read(self.paths)

    def meta(self) -> Mapping[str, Any]:
        return {"sweep": "s", "experiment": self.experiment.model_dump(mode="json")}

    def run(
        self,
        *,
        changed: Sequence[str] = (),
        meanwhile: Callable[[Bench], Any] | None = None,
        per_actor: int = 1,
        max_attempts: int = 5,
    ) -> SweepState:
        """One run, to its end, in virtual time. `meanwhile` is a coroutine function beside it."""
        return run_virtual(self._run(changed, meanwhile, per_actor, max_attempts))

    async def _run(
        self,
        changed: Sequence[str],
        meanwhile: Callable[[Bench], Any] | None,
        per_actor: int,
        max_attempts: int,
    ) -> SweepState:
        self.runs += 1
        registry = Registry(self.paths, f"run-{self.runs}", clock=lambda: 0.0)
        planner, policy = policy_of(self.experiment)
        slots = self.experiment.run.max_concurrent

        def launch(slots: int) -> MortalHost:
            self.hosts.append(MortalHost(self._sessions(registry)))
            return self.hosts[-1]

        launcher: Any = type("Launcher", (), {})()
        launcher.launch, launcher.starting_at_once = launch, lambda: 2
        pool = SessionPool(
            launcher, Packing(slots, per_actor), done=lambda *e: controller.outcome(*e)
        )
        controller = self.controller = Controller(
            run_id=f"run-{self.runs}",
            registry=registry,
            telemetry=NoTelemetry(),
            pool=pool,
            policy=policy,
            planner=planner,
            max_attempts=max_attempts,
            view=self.view,
            retry=self.retry,
            inbox=self.inbox,
            earlier=[] if self.is_starting else [c.command_id for c in self.inbox.waiting()],
            amend=self._amended,
            keeper=Keeper(
                registry,
                self.store,
                lambda: self.models,
                run_id=f"run-{self.runs}",
                clock=lambda: 0.0,
            ),
            clock=self.clock,
        )
        work = asyncio.ensure_future(controller.run(self.meta(), changed))
        beside = asyncio.ensure_future(meanwhile(self)) if meanwhile else None
        try:
            return await work
        finally:
            if beside:
                beside.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await beside
            registry.shut()

    async def _amended(self, settings: Mapping[str, Any]) -> Amendment:
        """As `Launch` does, without a folder."""
        raw = self.experiment.model_dump(mode="json")
        for key, value in settings.items():
            set_dotted(raw, key, value)
        before, self.experiment = self.experiment, Experiment.build(raw)
        planner, policy = policy_of(self.experiment)
        return Amendment(policy, planner, self.meta(), self.experiment.amendments(before))

    def _sessions(self, registry: Registry) -> SessionHost:
        return SessionHost(
            connect=lambda observer: FakeService(self.backend, observer=observer),
            registry=registry,
            sink=NoSink(),
            data=DATA,
            sweep="s",
            clock=lambda: 0.0,
        )


def numbers(state: SweepState) -> dict[str, Any]:
    """What must not depend on interruptions: per trial its state, steps and metrics."""
    return {t.trial_id: (t.state, t.step, t.metrics, t.values) for t in state.trials.values()}
