"""The hosts of a pool, and the trials that sit on each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.runtime.ports import Host


@dataclass(eq=False)
class Seat:
    """A slot that a trial holds: during a call, and between two calls while its session is open."""

    call: asyncio.Task[Any] | None = None
    """None: parked."""
    asked: bool = False
    """The call is an advance, whose outcome is waited for."""


@dataclass(eq=False)
class Member:
    """A host and who sits on it."""

    host: Host
    slots: int
    up: bool = False
    tokens: int = 0
    retired: bool = False
    """It takes nobody new, and goes when the last has left."""
    life: asyncio.Task[None] | None = None
    seats: dict[str, Seat] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.slots - len(self.seats) if self.up and not self.retired else 0

    @property
    def room(self) -> int:
        """Of the pool's slots, those that are its own."""
        return len(self.seats) if self.retired else self.slots

    def cancel(self) -> None:
        calls = [seat.call for seat in self.seats.values()]
        for task in (self.life, *calls):
            if task is not None:
                task.cancel()
