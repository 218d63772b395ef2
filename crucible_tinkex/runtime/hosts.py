"""Hosts on Ray: a session actor as the pool's `Host`, and the launcher that makes them.

Ray's errors end here. What Ray says of a dead process becomes `HostLostError`, of one that cannot
start `WorkerStartError`, each with Ray's reason in a line; errors of this package come through
unchanged.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from crucible_tinkex.errors import CrucibleError, HostLostError, WorkerStartError
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.outcome import Outcome
from crucible_tinkex.runtime.session_actor import SweepContext
from crucible_tinkex.session import SweepData
from crucible_tinkex.trial import TrialPlan


class RayHost:
    """One session actor, for one sweep."""

    def __init__(
        self,
        runtime: Runtime,
        actor: ActorHandle[Any],
        context: SweepContext,
        data: ray.ObjectRef[SweepData],
        *,
        reachable: bool,
    ) -> None:
        self._runtime = runtime
        self._actor = actor
        self._context = context
        self._sweep_id = context.sweep_id
        self._data = data
        self._reachable = reachable

    async def ready(self) -> None:
        opened = self._actor.open.remote(self._context, self._data)
        await _answer(opened, lost=WorkerStartError)

    async def ping(self) -> None:
        await _answer(self._actor.pid.remote())

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome:
        outcome: Outcome = await _answer(
            self._actor.advance.remote(self._sweep_id, plan, to_step),
        )
        return outcome

    async def release(self, trial_id: str, state: str, reason: str | None) -> None:
        await _answer(self._actor.release.remote(self._sweep_id, trial_id, state, reason))

    async def drain(self) -> None:
        await _answer(self._actor.drain.remote(self._sweep_id))

    async def hold_back(self, until: float) -> None:
        await _answer(self._actor.hold_back.remote(self._sweep_id, until))

    async def forget(self) -> None:
        await _answer(self._actor.forget.remote(self._sweep_id))

    def kill(self) -> None:
        ray.kill(self._actor)

    def keep(self) -> None:
        self._runtime.keep(self._actor, reachable=self._reachable)


class RayLauncher:
    """Session actors of a runtime for one sweep. `reachable`: its service answers on every node of
    the cluster, so sessions may run on any."""

    def __init__(
        self, runtime: Runtime, context: SweepContext, data: SweepData, *, reachable: bool
    ) -> None:
        self._runtime = runtime
        self._context = context
        self._data = runtime.share(data)
        self._reachable = reachable
        self._at_once = runtime.starting_at_once(reachable=reachable)

    def launch(self, slots: int) -> RayHost:
        """A warm actor, or one that is being started; it takes any number of sessions."""
        actor = self._runtime.session_actor(reachable=self._reachable)
        return RayHost(self._runtime, actor, self._context, self._data, reachable=self._reachable)

    def starting_at_once(self) -> int:
        return self._at_once


async def _answer(call: Awaitable[Any], *, lost: type[CrucibleError] = HostLostError) -> Any:
    """The answer of an actor. Raises `lost` where Ray has none."""
    try:
        return await call
    except RayTaskError as e:
        if isinstance(e.cause, CrucibleError):
            raise e.cause from None
        raise lost(f"the worker process failed: {e.cause!r}") from e
    except RayError as e:
        raise lost(f"the worker process is gone: {first_line(e)}") from e


def first_line(error: BaseException) -> str:
    """What Ray says first, of the many lines that it says."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
