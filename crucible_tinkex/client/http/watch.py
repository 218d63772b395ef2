"""What the calls of one service session do and wait for, told to whoever watches.

Several calls are under way at once and each may wait for a reason of its own. The session as a
whole is `active` while none of them waits; otherwise it is what the latest of them waits for. The
observer hears of changes only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class QueueState(NamedTuple):
    """Why nothing moves.

    `state` is the service's word: `active`, `paused_capacity`, `paused_rate_limit`, or one that is
    newer than this client. `resume_at` (seconds of the Unix clock) is when calls are sent again,
    known only for a back-off that the service asked this key for. `for_place`: it has no place for
    one more model until another is given up.
    """

    state: str
    reason: str | None = None
    resume_at: float | None = None
    for_place: bool = False


ACTIVE = QueueState("active")
PAUSED_RATE_LIMIT = "paused_rate_limit"
PAUSED_CAPACITY = "paused_capacity"


class RequestRecord(NamedTuple):
    """One call, for telemetry. `status` is the last answer's, `error` the class that it raised.

    `duration_s` is all of it, `queued_s` the part spent on back-off that the service asked for.
    """

    operation: str
    path: str
    duration_s: float
    queued_s: float
    attempts: int
    status: int | None
    error: str | None


class Observer:
    """Override what you want to hear. Must be quick, and must not raise."""

    def on_request(self, record: RequestRecord) -> None:
        """After every HTTP call, whatever became of it."""

    def on_queue_state(self, state: QueueState) -> None:
        """The session stopped or started moving, or waits for something else now."""


class Observers(Observer):
    """Several observers of one service."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_request(self, record: RequestRecord) -> None:
        for observer in self._observers:
            observer.on_request(record)

    def on_queue_state(self, state: QueueState) -> None:
        for observer in self._observers:
            observer.on_queue_state(state)


class Watch:
    """The waits of one session, folded into one state. See the module."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self._waits: dict[Hashable, QueueState] = {}
        self._told = ACTIVE

    def request(self, record: RequestRecord) -> None:
        if self._observer is not None:
            self._observer.on_request(record)

    def waits(self, call: Hashable, state: QueueState) -> None:
        """`call` waits for `state`; `active` means that it does not wait."""
        if self._observer is None:
            return
        self._waits.pop(call, None)
        if state.state != ACTIVE.state:
            self._waits[call] = state
        now = next(reversed(self._waits.values()), ACTIVE)
        if now != self._told:
            self._told = now
            self._observer.on_queue_state(now)

    @contextmanager
    def waiting(self, call: Hashable, state: QueueState) -> Iterator[None]:
        """`call` waits for `state` inside."""
        self.waits(call, state)
        try:
            yield
        finally:
            self.moves(call)

    def moves(self, call: Hashable) -> None:
        """`call` waits no longer; harmless if it never did."""
        if call in self._waits:
            self.waits(call, ACTIVE)


UNWATCHED = Watch()
"""Without an observer a watch keeps nothing, so that one serves all."""
