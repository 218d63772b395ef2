"""Hosts on Ray: a session actor as the pool's `Host`, and the launcher that makes them.

What Ray says of a dead process becomes `HostLostError`, of one that cannot start
`WorkerStartError`, each with Ray's reason in a line.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from crucible_tinkex.errors import HostLostError, WorkerStartError
from crucible_tinkex.runtime.actors.handles import answer
from crucible_tinkex.runtime.actors.relay import Hearing, Told
from crucible_tinkex.runtime.actors.session_actor import RunContext
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.ports import Beat
from crucible_tinkex.telemetry.bridge.catalogue import Handler
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan


class RayLauncher:
    """Session actors for one run. `reachable`: its service answers on every node of the cluster, so
    sessions may run on any. `handler` hears what they do, if the context says so."""

    def __init__(
        self,
        runtime: Runtime,
        context: RunContext,
        data: SweepData,
        *,
        reachable: bool,
        handler: Handler | None = None,
    ) -> None:
        self.runtime = runtime
        self.context = context
        self.data = runtime.share(data)
        self.reachable = reachable
        self.handler = handler
        self._at_once = runtime.starting_at_once(reachable=reachable)

    def launch(self, slots: int) -> RayHost:
        """A warm actor, or one that is being started; it takes any number of sessions."""
        return RayHost(self, self.runtime.session_actor(reachable=self.reachable))

    def starting_at_once(self) -> int:
        return self._at_once


class RayHost:
    """One session actor, for one run."""

    def __init__(self, launcher: RayLauncher, actor: ActorHandle[Any]) -> None:
        self._launcher = launcher
        self._actor = actor
        self._hearing: Hearing | None = None

    async def _call(self, method: str, *args: Any) -> Any:
        remote = getattr(self._actor, method).remote
        return await answer(remote(self._launcher.context.run_id, *args), lost=HostLostError)

    async def ready(self) -> None:
        remote: Any = self._actor.open.remote
        await answer(remote(self._launcher.context, self._launcher.data), lost=WorkerStartError)
        if self._launcher.handler is not None:
            self._hearing = Hearing(partial(self._call, "told"), self._launcher.handler)

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        beat: Beat = await self._call("heartbeat", after_s, known)
        return beat

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        outcome: Outcome = await self._call("advance", plan, to_step)
        return outcome

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await self._call("release", trial_id, state, reason)

    async def drain(self, trial_id: str | None = None) -> None:
        await self._call("drain", trial_id)

    async def hold_back(self, until: float) -> None:
        await self._call("hold_back", until)

    async def make_room(self, trial_id: str | None = None) -> None:
        await self._call("make_room", trial_id)

    async def forget(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
        rest: Told = await self._call("forget")
        if self._hearing is not None:
            await self._hearing.end(rest)

    def kill(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
        ray.kill(self._actor)

    def keep(self) -> None:
        self._launcher.runtime.keep(self._actor, reachable=self._launcher.reachable)
