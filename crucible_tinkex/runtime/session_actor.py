"""The session actor: one worker process, which holds the live sessions of the sweeps it serves.

It only carries calls to the sessions of a sweep and back; what a session does is no part of it.
Where the service is, it is told by the driver: its node's own environment is not asked. Imports
neither torch nor transformers, and no reader or writer of files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from ray.actor import ActorHandle

from crucible_tinkex.client.choose import hold_back
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.runtime.outcome import Outcome
from crucible_tinkex.runtime.sweep_sessions import SweepSessions
from crucible_tinkex.session import SweepData
from crucible_tinkex.trial import TrialPlan


@dataclass(frozen=True)
class SweepContext:
    """What every session of a sweep shares. Holds the key's place, never the key."""

    sweep_id: str
    experiment_id: str
    paths: SweepPaths
    base_url: str
    """Resolved by the driver: another node's TINKER_BASE_URL may be another service."""
    api_key_file: str | None
    transport: Literal["http", "sdk"]
    registry: ActorHandle[Any]
    telemetry: ActorHandle[Any]

    def __post_init__(self) -> None:
        if not (self.base_url or "").startswith(("http://", "https://")):
            raise ConfigError(f"the service's address is not resolved: {self.base_url!r}")


class SessionActor:
    """Reused from trial to trial and from sweep to sweep. Every call names its sweep."""

    def __init__(self) -> None:
        self._sweeps: dict[str, SweepSessions] = {}
        self._contexts: dict[str, SweepContext] = {}

    async def pid(self) -> int:
        return os.getpid()

    async def open(self, context: SweepContext, data: SweepData) -> None:
        """Make ready for a sweep; the other calls expect it."""
        self._contexts[context.sweep_id] = context
        self._sweeps[context.sweep_id] = SweepSessions(context, data)

    async def advance(self, sweep_id: str, plan: TrialPlan, to_step: int) -> Outcome:
        """Train a trial up to `to_step`; open its session first if it has none."""
        return await self._sweeps[sweep_id].advance(plan, to_step)

    async def release(self, sweep_id: str, trial_id: str, state: str, reason: str | None) -> None:
        """Close a parked session."""
        await self._sweeps[sweep_id].release(trial_id, state, reason)

    async def drain(self, sweep_id: str) -> None:
        """Sessions of this sweep finish their step, save, and stop."""
        self._sweeps[sweep_id].drain()

    async def hold_back(self, sweep_id: str, until: float) -> None:
        """Send nothing before `until` (Unix seconds)."""
        context = self._contexts[sweep_id]
        hold_back(context.base_url, api_key_file=context.api_key_file, until=until)

    async def forget(self, sweep_id: str) -> None:
        """The sweep is over: leave its sessions, deliver what is left, drop what was kept."""
        self._contexts.pop(sweep_id, None)
        sweep = self._sweeps.pop(sweep_id, None)
        if sweep:
            await sweep.aclose()
