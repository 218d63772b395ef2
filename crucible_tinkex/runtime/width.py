"""How many sessions train at the same time: fewer when the service asks to slow down, more later.

Each time the service asks for a pause, or has no place for a model, the width is halved; after
every quiet window it grows. That is AIMD, as TCP does it (Chiu and Jain, 1989, "Analysis of the
increase and decrease algorithms for congestion avoidance in computer networks"), with a step of a
quarter in place of one, and doubled (slow start; Jacobson, 1988, "Congestion avoidance and
control") until there is a sign to stop. With a number in `run.max_concurrent` it starts there. With
"auto" it starts at `FIRST`, and a step is kept only if it is worth it: tokens per second over all
trials must rise by `WORTH`, else it is taken back, and tried again after `REST_S`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

FIRST = 2
WINDOW_S = 30.0
WORTH = 0.05
REST_S = 600.0
DEAF_S = 15.0
"""One back-off makes many sessions wait, one after the other: what follows so soon is the same."""


class Seen(NamedTuple):
    """What all hosts told up to a time, in seconds of any clock."""

    time_s: float
    tokens: int
    """Trained so far."""
    complaints: int
    """How often the service asked for a pause, or had no place, so far."""
    is_full: bool
    """As many sessions train as may."""
    waits: bool = False
    """Somebody waits for a place on the service."""


@dataclass(frozen=True)
class _Before:
    """What a step is measured by."""

    width: int
    rate: float


class Width:
    """See the module. `now` is the width; it is between 1 and `most`."""

    def __init__(self, most: int, *, probes: bool = False) -> None:
        """`probes`: a step up must be worth it ("auto")."""
        self._most = most
        self._probes = probes
        self.now = min(FIRST, most) if probes else most
        self._doubles = True
        self._before: _Before | None = None
        self._start: Seen | None = None
        self._rests_until = self._deaf_until = -math.inf

    def look(self, seen: Seen) -> None:
        """Call it every few seconds."""
        start = self._start
        if start is None:
            self._start = seen._replace(complaints=0)
        elif seen.complaints > start.complaints:
            self._narrow(seen)
        elif seen.waits:
            self._start = seen
        elif seen.time_s - start.time_s >= WINDOW_S:
            rate = (seen.tokens - start.tokens) / (seen.time_s - start.time_s)
            if not self._probes or (seen.is_full and start.is_full and rate > 0):
                self._step(seen.time_s, rate)
            self._start = seen

    def _narrow(self, seen: Seen) -> None:
        self._start = seen
        if seen.time_s >= self._deaf_until:
            self.now = max(1, self.now // 2)
            self._doubles, self._before = False, None
            self._deaf_until = seen.time_s + DEAF_S

    def _step(self, time_s: float, rate: float) -> None:
        before, self._before = self._before, None
        if before is not None and rate < before.rate * (1 + WORTH):
            self.now, self._doubles = before.width, False
            self._rests_until = time_s + REST_S
        elif time_s >= self._rests_until and self.now < self._most:
            if self._probes:
                self._before = _Before(self.now, rate)
            step = self.now if self._doubles else max(1, self.now // 4)
            self.now = min(self._most, self.now + step)
