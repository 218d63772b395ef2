"""Hosts and a launcher whose behaviour a test writes down: how a host starts, lives and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from crucible_tinkex.errors import CrucibleError, HostLostError, WorkerStartError
from crucible_tinkex.runtime.pool import SessionPool
from crucible_tinkex.runtime.ports import Beat, Packing
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.training.outcome import Outcome, Progress, Verdict


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on a virtual clock."""

    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@dataclass(frozen=True)
class Plan:
    """As much of a `TrialPlan` as a pool looks at."""

    trial_id: str
    total_steps: int = 10


@dataclass(frozen=True)
class Script:
    """The life of one host, in seconds of the loop."""

    starts_after: float = 1.0
    fails: str | None = None
    """The reason why it does not come up."""
    dies_at: float | None = None
    """After it came up: calls end in `HostLostError`."""
    hangs_at: float | None = None
    """After it came up: nothing is answered any more."""
    step_s: float = 1.0
    tokens_per_s: float = 0.0
    """Of each session."""
    held: tuple[float, float] | None = None
    """After it came up the service asks a session of it to wait until then (Unix seconds)."""


@dataclass(eq=False)
class ScriptedHost:
    script: Script
    slots: int
    parked: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    heard: list[tuple[str, Any]] = field(default_factory=list)
    ended: str | None = None
    tokens: float = 0.0
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _hung: bool = False
    _held: asyncio.Event = field(default_factory=asyncio.Event)

    async def ready(self) -> None:
        await asyncio.sleep(self.script.starts_after)
        if self.script.fails:
            raise WorkerStartError(self.script.fails)
        loop = asyncio.get_running_loop()
        if self.script.dies_at is not None:
            loop.call_later(self.script.dies_at, self._gone.set)
        if self.script.hangs_at is not None:
            loop.call_later(self.script.hangs_at, self._hang)
        if self.script.held is not None:
            loop.call_later(self.script.held[0], self._held.set)

    def _hang(self) -> None:
        self._hung = True

    async def _takes(self, seconds: float) -> None:
        """A call that takes a while; ends with the host, or never."""
        if self._hung:
            await asyncio.Event().wait()
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            if self._hung:
                await asyncio.Event().wait()
            return
        raise HostLostError("the process died")

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        until = self.script.held[1] if self.script.held else 0.0
        beats = asyncio.ensure_future(self._takes(after_s))
        news = asyncio.ensure_future(self._held.wait() if until > known else beats)
        try:
            await asyncio.wait({beats, news}, return_when=asyncio.FIRST_COMPLETED)
            if beats.done():
                await beats
        finally:
            beats.cancel()
            news.cancel()
        self.tokens += after_s * self.script.tokens_per_s * len(self.running)
        return Beat(until if self._held.is_set() else 0.0, int(self.tokens))

    async def advance(self, plan: Plan, to_step: int) -> Outcome:
        self.heard.append(("advance", plan.trial_id))
        self.running.add(plan.trial_id)
        self.parked.discard(plan.trial_id)
        assert len(self.running | self.parked) <= self.slots
        try:
            await self._takes(self.script.step_s)
        finally:
            self.running.discard(plan.trial_id)
        if to_step < plan.total_steps:
            self.parked.add(plan.trial_id)
        progress = Progress(plan.trial_id, 1, to_step, {}, drained=False)
        return Outcome(Verdict.ADVANCED, progress)

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await self._takes(0.1)
        self.heard.append(("release", (trial_id, state, reason)))
        self.parked.remove(trial_id)

    async def drain(self, trial_id: str | None = None) -> None:
        await self._takes(0.001)
        self.heard.append(("drain", None))

    async def hold_back(self, until: float) -> None:
        self.heard.append(("hold_back", until))

    async def make_room(self, trial_id: str | None = None) -> None:
        await self._takes(0.1)
        self.heard.append(("make_room", trial_id))
        if trial_id is not None:
            self.parked.remove(trial_id)

    async def forget(self) -> None:
        await self._takes(0.1)
        self.heard.append(("forget", None))

    def kill(self) -> None:
        assert self.ended is None
        self.ended = "killed"
        self._gone.set()

    def keep(self) -> None:
        assert self.ended is None
        self.ended = "kept"


class ScriptedLauncher:
    """Gives hosts by the scripts, the last one for ever."""

    def __init__(self, scripts: Iterable[Script] = (), *, at_once: int = 4) -> None:
        scripts = list(scripts) or [Script()]
        self._scripts: Iterator[Script] = chain(scripts, repeat(scripts[-1]))
        self._at_once = at_once
        self.hosts: list[ScriptedHost] = []

    def launch(self, slots: int) -> ScriptedHost:
        self.hosts.append(ScriptedHost(next(self._scripts), slots))
        return self.hosts[-1]

    def starting_at_once(self) -> int:
        return self._at_once

    @property
    def running(self) -> int:
        return sum(len(h.running) for h in self.hosts if h.ended is None)


class Answers:
    """Collects what a pool says, and lets a test wait for it."""

    def __init__(self) -> None:
        self.given: list[tuple[str, Outcome]] = []
        self.then: Callable[[str, Outcome], None] = lambda trial_id, outcome: None
        self._news = asyncio.Event()

    def __call__(self, trial_id: str, outcome: Outcome) -> None:
        self.given.append((trial_id, outcome))
        self.then(trial_id, outcome)
        self._news.set()

    async def wait_for(self, count: int) -> list[tuple[str, Outcome]]:
        while len(self.given) < count:
            self._news.clear()
            await self._news.wait()
        return self.given

    def verdicts(self) -> dict[str, Verdict]:
        return {trial_id: outcome.verdict for trial_id, outcome in self.given}

    def error_of(self, trial_id: str) -> CrucibleError:
        error = dict(self.given)[trial_id].error
        assert error is not None
        return error


def make_pool(
    launcher: ScriptedLauncher,
    *,
    slots: int,
    per_actor: int = 1,
    probes: bool = False,
    **options: Any,
) -> tuple[SessionPool, Answers]:
    answers = Answers()
    packing = Packing(slots, per_actor, probes)
    return SessionPool(launcher, packing, done=answers, **options), answers
