"""A sweep under a random schedule of faults, all of it from one seed: the real registry, sessions,
pool, policy and controller between a registry, a service and hosts that fail.

A schedule is made of points: every call of the registry and every operation of the service passes
several (before it, in its middle, behind it). At a point time may pass; at some of them, drawn
beforehand, something happens: a host or the driver dies, the registry restarts, somebody drains, a
second driver begins, the service holds everything, forgets or damages a checkpoint. Operations
fail by themselves at a rate, before or after their effect. `invariants` judges what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from local_sweeps import MortalHost, NoSink, NoTelemetry, make_data, make_experiment, policy_of

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import (
    CrucibleError,
    HostLostError,
    OperationFailedError,
    ServiceUnavailableError,
    SessionLostError,
    StaleEpochError,
    StorageError,
)
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Registry, SweepState
from crucible_tinkex.runtime.pool import SessionPool
from crucible_tinkex.runtime.ports import Packing
from crucible_tinkex.sweep.controller import Controller
from crucible_tinkex.sweep.orders.control import KINDS, Command, Inbox
from crucible_tinkex.sweep.results.views.view import SweepView
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.testing.fake_model import FakeWeights
from crucible_tinkex.testing.fake_service import FakeTraining
from crucible_tinkex.training.host import SessionHost

T = TypeVar("T")

DATA = make_data(rows=12, evaluated=2)
BATCH = 2
RULES = (
    *("none", "none", "none", "halving", "halving"),
    *("topk", "hyperband", "median", ("median", "plateau", "halving")),
)
RATES = (1e-3, 2e-3)
"""Of the sweep, and of clones."""
MOST_POINTS = 5_000
"""A run that passes more than this spins."""
READS = ("changes",)
ACTIONS = (
    *("host", "zombie", "driver", "registry", "drain", "second", "hold", "forget", "damage"),
    *("host", "driver", "drain"),
    *("command", "command", "command"),
)


class Asked(NamedTuple):
    """What a run asks for; later runs may ask for more."""

    ranks: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    rule: str | tuple[str, ...]
    slots: int
    checkpoint_every: int
    eval_every: int
    submit_ahead: int
    confirm: int = 0
    budget: int | None = None
    """Most steps."""

    @property
    def halving(self) -> bool:
        """Whether trials are compared and stopped."""
        return self.rule != "none"


@cache
def experiment(asked: Asked) -> Experiment:
    stopping = {"rule": asked.rule, "eta": 2, "first_rung": 1, "startup": 1, "patience": 0}
    return make_experiment(
        optimizer={"learning_rate": RATES[0]},
        train={
            "max_steps": asked.steps,
            "batch_size": BATCH,
            "checkpoint_every": asked.checkpoint_every,
            "eval_every": asked.eval_every,
            "submit_ahead": asked.submit_ahead,
        },
        evaluation={"generate": False},
        search={
            "space": {"lora.rank": asked.ranks},
            "seeds": asked.seeds,
            "stopping": stopping,
            "confirm": asked.confirm,
            "confirm_top": 1,
        },
        budget={"steps": asked.budget},
        run={"max_concurrent": asked.slots},
    )


@dataclass
class Schedule:
    """What happens when, drawn from a seed before anything runs, and while it does."""

    rng: random.Random
    actions: dict[int, str] = field(default_factory=dict)
    error_rate: float = 0.0
    latency: float = 0.0
    twice: float = 0.0
    """How often a registry call is sent again, its answer having been lost."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Schedule:
        span = rng.choice((60, 200, 500))
        actions = {rng.randrange(span): rng.choice(ACTIONS) for _ in range(rng.randrange(5))}
        rate = rng.choice((0.0, 0.0, 0.02, 0.1))
        return cls(rng, actions, rate, rng.choice((0.0, 0.3, 0.8)), rng.choice((0.0, 0.2)))


class Driver:
    """One run of the sweep. `dead`: killed, so that nothing it still does reaches anybody."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.run_id = f"run-{number}"
        self.registry = Registry(world.paths, self.run_id, clock=lambda: 0.0)
        self.killed = asyncio.Event()
        self.hosts: list[MortalHost] = []
        self.controller: Controller | None = None
        self._grants = 0

    @property
    def dead(self) -> bool:
        return self.killed.is_set()

    def kill(self) -> None:
        self.killed.set()
        self.registry.shut()

    def restart_registry(self) -> None:
        """What was not written is gone; the caller sends it again."""
        self.registry.shut()
        with contextlib.suppress(StaleEpochError):
            self.registry = Registry(self.world.paths, self.run_id, clock=lambda: 0.0)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """The driver is its own `ControlPort`."""

        async def call(*args: Any) -> Any:
            if method == "start_attempt":
                self._grants += 1
                args = (*args, f"{self.run_id}/{self._grants}")
            await self.world.point(self, method in READS)
            again = self.world.schedule.rng.random() < self.world.schedule.twice
            answer = await self._reach(method, args)
            if again:
                answer = await self._reach(method, args)
            self.world.acknowledged.append((method, args))
            await self.world.point(self, method in READS)
            return answer

        return call

    async def _reach(self, method: str, args: tuple[Any, ...]) -> Any:
        while True:
            registry = self.registry
            if self.dead:
                raise HostLostError("the driver is dead")
            try:
                return await getattr(registry, method)(*args)
            except StorageError:
                if registry is self.registry:
                    raise


class FaultyService(FakeService):
    """Says which models it made, and of what."""

    def __init__(self, world: World, driver: Driver, observer: Observer) -> None:
        super().__init__(world.backend, observer=observer)
        self._driver = driver

    def check(self) -> None:
        super().check()
        if self._driver.dead:
            raise SessionLostError("the driver is dead")

    def _training(self, weights: FakeWeights) -> FakeTraining:
        made = super()._training(weights)
        self.backend.models[made.model_id] = weights  # type: ignore[attr-defined]
        return made


class FaultyBackend(FakeBackend):
    """Fails as the world's schedule says."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.models: dict[str, FakeWeights] = {}
        self.gone: set[str] = set()
        """Checkpoints that were forgotten or damaged."""
        self.asked: list[str] = []
        """Operations on models, whatever became of them."""

    def submitted(self, operation: str) -> None:
        super().submitted(operation)
        self.asked.append(operation)

    async def operate(self, operation: str, effect: Callable[[], T], observer: Observer) -> T:
        schedule = self.world.schedule
        await self._wait(observer)
        await self.world.point(None)
        self.calls.append(operation)
        error = self.world.error(operation)
        if error and schedule.rng.random() < 0.5:
            raise error
        await self.world.point(None)
        result = effect()
        await self.world.point(None)
        if error:
            raise error
        return result


class World:
    """One sweep in one folder, its service, and who drives it now."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.paths = SweepPaths.of(folder, "s")
        self.inbox = Inbox(self.paths)
        self.schedule = Schedule(self.rng)
        self.backend = FaultyBackend(self)
        self.drivers: list[Driver] = []
        self.acknowledged: list[tuple[str, tuple[Any, ...]]] = []
        self.points = 0
        self.per_actor = self.rng.randint(1, 3)
        self.max_attempts = self.rng.randint(2, 5)
        self.asked = self._first()
        self.told: Asked | None = None
        self.disturbed = False
        self.commanded = False
        self.told_failed = 0
        """Operations that failed as the user's own fault."""
        self.log: list[str] = []
        self._others: list[asyncio.Task[None]] = []

    @property
    def state(self) -> SweepState:
        return SweepState.read(self.paths)

    # --- what is asked for ----------------------------------------------------------------------

    def _first(self) -> Asked:
        rng = self.rng
        return Asked(
            ranks=rng.choice(((2,), (2, 8), (2, 8, 32))),
            seeds=rng.choice(((0,), (0, 1))),
            steps=rng.choice((2, 4)),
            rule=rng.choice(RULES),
            slots=rng.randint(1, 4),
            checkpoint_every=rng.choice((0, 1, 2, 3)),
            eval_every=rng.choice((0, 2)),
            submit_ahead=rng.choice((0, 1, 2)),
            confirm=rng.choice((0, 0, 1)),
            budget=rng.choice((None, None, 3, 10)),
        )

    def amend(self) -> None:
        rng, asked = self.rng, self.asked
        change = rng.choice(("steps", "seeds", "ranks", "slots", "budget"))
        more: Mapping[str, Any] = {
            "steps": 6,
            "seeds": (0, 1),
            "ranks": (2, 8, 32),
            "slots": rng.randint(1, 4),
            "budget": None,
        }
        self.asked = asked._replace(**{change: more[change]})

    # --- running --------------------------------------------------------------------------------

    def run(self, *, schedule: Schedule | None = None) -> Exception | None:
        """One run, and those that begin beside it; what it raised."""
        self.schedule = schedule or Schedule(self.rng)
        self.disturbed |= schedule is not None
        self.points = 0
        self.log.append(f"run {self.asked} {self.schedule.actions} {self.schedule.error_rate}")
        return run_virtual(self._run())

    async def _run(self) -> Exception | None:
        self._others = []
        self.backend.let_go()
        error = await self._drive()
        for other in self._others:
            await asyncio.wait({other})
            if (failed := other.exception()) and not isinstance(failed, CrucibleError):
                raise failed
        return error

    async def _drive(self) -> Exception | None:
        driver = Driver(self, len(self.drivers) + 1)
        self.drivers.append(driver)
        changed = ["search"] if self.told not in (None, self.asked) else []
        self.told = self.asked
        work = asyncio.ensure_future(self._controlled(driver, changed))
        killed = asyncio.ensure_future(driver.killed.wait())
        await asyncio.wait({work, killed}, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        if driver.dead:
            work.cancel()
            for host in driver.hosts:
                host.die()
        await asyncio.wait({work})
        driver.registry.shut()
        error = None if work.cancelled() else work.exception()
        if driver.dead:
            return HostLostError("killed")
        if error and not isinstance(error, CrucibleError):
            raise error
        return error  # type: ignore[return-value]

    async def _controlled(self, driver: Driver, changed: list[str]) -> SweepState:
        declared = experiment(self.asked)
        planner, policy = policy_of(declared, rows=len(DATA.train))
        launcher: Any = type("Launcher", (), {})()
        launcher.starting_at_once = lambda: 2
        launcher.launch = lambda slots: self._host(driver)
        pool = SessionPool(
            launcher,
            Packing(self.asked.slots, self.per_actor),
            done=lambda *ended: controller.outcome(*ended),
        )
        controller = driver.controller = Controller(
            run_id=driver.run_id,
            registry=driver,  # type: ignore[arg-type]
            telemetry=NoTelemetry(),
            pool=pool,
            policy=policy,
            planner=planner,
            max_attempts=self.max_attempts,
            view=SweepView("s"),
            inbox=self.inbox,
            clock=asyncio.get_running_loop().time,
        )
        meta = {"sweep": "s", "experiment": declared.model_dump(mode="json")}
        return await controller.run(meta, changed)

    def _host(self, driver: Driver) -> MortalHost:
        sessions = SessionHost(
            connect=lambda observer: FaultyService(self, driver, observer),
            registry=driver,  # type: ignore[arg-type]
            sink=NoSink(),
            data=DATA,
            sweep="s",
            clock=lambda: 0.0,
        )
        driver.hosts.append(MortalHost(sessions))
        return driver.hosts[-1]

    # --- what happens ---------------------------------------------------------------------------

    async def point(self, driver: Driver | None, is_read: bool = False) -> None:
        """Time passes, or something happens."""
        self.points += 1
        assert self.points < MOST_POINTS, "the sweep spins"
        action = None if is_read else self.schedule.actions.pop(self.points, None)
        if action:
            self.log.append(f"{self.points}: {action}")
            self._act(action, driver or self.drivers[-1])
        if self.schedule.latency and self.rng.random() < self.schedule.latency:
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.1, 1.0)) * self.rng.random())
        if driver and driver.dead:
            raise HostLostError("the driver is dead")

    def _act(self, action: str, driver: Driver) -> None:
        if action in ("host", "zombie"):
            alive = [h for h in driver.hosts if not h.gone.is_set()]
            if alive:
                self.rng.choice(alive).die(silently=action == "zombie")
        elif action == "driver" and not self._others:
            driver.kill()
        elif action == "registry":
            driver.restart_registry()
        elif action == "drain" and driver.controller:
            driver.controller.request_drain()
        elif action == "second" and not self._others:
            (self.paths.journal / "lock").unlink(missing_ok=True)
            self._others.append(asyncio.ensure_future(self._second()))
        elif action == "command":
            self.command()
        elif action == "hold":
            self.backend.hold()
            asyncio.get_running_loop().call_later(self.rng.random() * 50, self.backend.let_go)
        elif action in ("forget", "damage") and self.backend.checkpoints:
            self._spoil(self.rng.choice(sorted(self.backend.checkpoints)), action)

    def command(self) -> None:
        """A person asks for something, possible or not."""
        kind = self.rng.choice(KINDS)
        trials = () if self.rng.random() < 0.2 else (str(self.rng.randrange(6)),)
        settings = {"optimizer.learning_rate": RATES[1]} if kind == "clone" else {}
        at = self.rng.choice((None, 2))
        made = Command(kind, trials, settings, at=at, command_id=f"c{self.rng.random()}")  # type: ignore[arg-type]
        self.commanded = True
        self.inbox.put(made)
        if kind == "pause":  # somebody comes back; else it would wait for ever
            go_on = Command("unpause", command_id=f"{made.command_id}-again")
            asyncio.get_running_loop().call_later(50 * self.rng.random(), self.inbox.put, go_on)

    def _spoil(self, path: str, action: str) -> None:
        if path not in self.backend.gone:
            self.backend.gone.add(path)
            (self.backend.forget if action == "forget" else self.backend.damage)(path)

    async def _second(self) -> None:
        error = await self._drive()
        if error:
            raise error

    def error(self, operation: str) -> CrucibleError | None:
        if self.rng.random() >= self.schedule.error_rate:
            return None
        if self.rng.random() < 0.05 and operation == "forward_backward":
            self.told_failed += 1
            return OperationFailedError("bad rows", category="user")
        return self.rng.choice(
            (
                SessionLostError("gone"),
                ServiceUnavailableError("away"),
                OperationFailedError("internal", category="server"),
            )
        )


def play(folder: Path, rng: random.Random) -> World:
    """Up to three runs that are disturbed, and amended in between."""
    world = World(folder, rng)
    for _ in range(world.rng.randrange(1, 4)):
        world.run(schedule=Schedule.drawn(world.rng))
        if world.rng.random() < 0.4:
            world.amend()
    return world
