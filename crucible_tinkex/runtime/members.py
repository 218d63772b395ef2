"""The hosts of a pool, the trials that sit on each, and who of them leaves where places are few."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.runtime.ports import Host


@dataclass(eq=False)
class Seat:
    """A slot that a trial holds: during a call, and between two calls while its session is open."""

    call: asyncio.Future[Any] | None = None
    """None: parked."""
    asked: bool = False
    """The call is an advance, whose outcome is waited for."""
    ends: bool = False
    """It is one to the trial's last step."""
    since: float = 0.0
    """When it parked."""


@dataclass(eq=False)
class Member:
    """A host and who sits on it."""

    host: Host
    slots: int
    up: bool = False
    tokens: int = 0
    waiting: frozenset[str] = frozenset()
    """Trials that the service keeps waiting for their models."""
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


PATIENCE_S = 30.0
"""A back-off is shorter, and who waits for a place asks as often."""


class Want:
    """Want of places for models: a service may have fewer than the pool has slots, and parked
    sessions keep theirs while others wait."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.complaints = 0
        """How often somebody came to wait."""
        self._since = 0.0

    def look(self, members: Sequence[Member], now: float) -> tuple[Member, str] | None:
        """Who must leave: the trial that is parked longest, if for a while nobody who waits was
        given a place, and nobody trains who will give one up."""
        asked = {i: seat for m in members for i, seat in m.seats.items() if seat.asked}
        before, self.waiting = self.waiting, {i for m in members for i in m.waiting if i in asked}
        self.complaints += bool(self.waiting - before)
        will_end = any(seat.ends for i, seat in asked.items() if i not in self.waiting)
        if not before or before - self.waiting or will_end:
            self._since = now
        parked = [(s.since, m, i) for m in members for i, s in m.seats.items() if s.call is None]
        if not self.waiting or not parked or now - self._since < PATIENCE_S:
            return None
        self._since = now
        return min(parked, key=lambda found: found[0])[1:]
