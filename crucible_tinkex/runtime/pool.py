"""A bounded pool of session slots on Ray actors; a dead actor is replaced without anyone asking."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from crucible_tinkex.runtime.cluster import Packing, Runtime
from crucible_tinkex.runtime.session_actor import Outcome, SweepContext
from crucible_tinkex.trial import TrialPlan


class SlotLostError(Exception):
    """The actor died during the call; the trial needs a new attempt on another slot."""


@dataclass(eq=False)
class Member:
    """One actor process with room for several sessions."""

    actor: ActorHandle[Any]
    slots: int
    lost: bool = False


class SessionPool:
    """Slots on actors, as packed. An actor is started only while a trial waits for a slot, and only
    a few at once: by the time one is up, a slot may have become free."""

    def __init__(self, runtime: Runtime, packing: Packing) -> None:
        self._runtime = runtime
        self._packing = packing
        self._free: asyncio.Queue[Member] = asyncio.Queue()
        self._members: list[Member] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting = 0

    def _grow(self) -> None:
        """Start actors for those who wait, within the bounds."""
        while len(self._starting) < self._runtime.starting_at_once():
            slots = min(
                self._packing.per_actor, self._packing.slots - sum(m.slots for m in self._members)
            )
            coming = len(self._starting) * self._packing.per_actor
            if slots < 1 or self._waiting <= coming:
                return
            member = Member(self._runtime.session_actor(concurrency=slots), slots)
            self._members.append(member)
            task = asyncio.create_task(self._offer(member))
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            self._grow()

    async def _offer(self, member: Member) -> None:
        """Offer the member's slots once its process is up."""
        try:
            await member.actor.pid.remote()
        except (ActorDiedError, ActorUnavailableError):
            self._lose(member)
            return
        for _ in range(member.slots):
            self._free.put_nowait(member)

    def _lose(self, member: Member) -> None:
        """Once per dead actor: makes room for another."""
        if not member.lost:
            member.lost = True
            self._members.remove(member)
            self._runtime.kill(member.actor)
            self._grow()

    async def acquire(self) -> Member:
        """Wait for a free slot."""
        self._waiting += 1
        try:
            if self._free.empty():
                self._grow()
            while (member := await self._free.get()).lost:
                pass
            return member
        finally:
            self._waiting -= 1

    def release(self, member: Member) -> None:
        self._free.put_nowait(member)

    async def advance(
        self, member: Member, context: SweepContext, plan: TrialPlan, data: Any, to_step: int
    ) -> Outcome:
        """Run a rung on a slot. Raises `SlotLostError` when the actor dies."""
        try:
            outcome: Outcome = await member.actor.advance.remote(context, plan, data, to_step)
        except (ActorDiedError, ActorUnavailableError) as e:
            self._lose(member)
            raise SlotLostError(str(e)) from e
        return outcome

    async def drain(self, sweep_id: str) -> None:
        """Ask every session of the sweep to finish its step, save and stop."""
        await self._tell("drain", sweep_id)

    def hold_back(self, context: SweepContext) -> None:
        """Let every running session send nothing before `context.held_until`. One that dies
        meanwhile, or starts later, hears of it with its next `advance`."""
        for member in self._members:
            member.actor.hold_back.remote(context)

    async def close(self, sweep_id: str) -> None:
        """Flush and keep the actors warm for the next sweep."""
        for task in list(self._starting):
            task.cancel()
        await self._tell("forget", sweep_id)
        for member in self._members:
            self._runtime.keep(member.actor)
        self._members.clear()

    async def _tell(self, method: str, sweep_id: str) -> None:
        calls = [getattr(m.actor, method).remote(sweep_id) for m in self._members]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, RayError):
                raise result
