"""What the pool needs of hosts, and nothing of what they are: actors, or the driver's own loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from crucible_tinkex.runtime.width import FIRST
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan


@dataclass(frozen=True)
class Packing:
    """`slots` sessions at the same time, `per_actor` of them in a process."""

    slots: int
    per_actor: int
    probes: bool = False
    """Begin with few, and take more as long as that is worth it (`width`)."""

    @property
    def actors(self) -> int:
        """Processes that are needed at once."""
        return -(-(min(FIRST, self.slots) if self.probes else self.slots) // self.per_actor)


class Beat(NamedTuple):
    """What a host tells again and again."""

    held_until: float = 0.0
    """When it may send again (Unix seconds): later than now if the service asked it to wait."""
    tokens: int = 0
    """Trained here so far."""
    waiting: frozenset[str] = frozenset()
    """Trials that the service keeps waiting for their models."""
    is_full: bool = False
    """It said that it has no place for them."""


class Host(Protocol):
    """One worker process, or the driver's own loop. Calls raise `HostLostError` once it is gone."""

    async def ready(self) -> None:
        """Return when it is up. Raises `CrucibleError` with the reason when it cannot start."""

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        """Answers after so many seconds, and at once when it must wait longer than `known`."""

    async def advance(self, plan: TrialPlan, to_step: int) -> Outcome: ...

    async def release(self, trial_id: str, state: str, reason: str | None) -> None: ...

    async def drain(self, trial_id: str | None = None) -> None: ...  # one session, or all

    async def hold_back(self, until: float) -> None: ...

    async def make_room(self, trial_id: str | None = None) -> None:
        """Have the service unload what ended sessions left, now and from now on; with `trial_id`,
        leave that parked session, whose trial goes on in a new one."""

    async def forget(self) -> None:
        """Deliver and drop what it holds for this sweep."""

    def kill(self) -> None: ...

    def keep(self) -> None:
        """Give it back, warm, for the next sweep."""


class HostLauncher(Protocol):
    def launch(self, slots: int) -> Host:
        """A host for that many sessions, which need not be up yet. Raises nothing."""

    def starting_at_once(self) -> int: ...
