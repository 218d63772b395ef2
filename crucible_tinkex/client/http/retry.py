"""Which failures are retried, for how long, and what they become when they are not.

| failure | what happens |
|---|---|
| connect error, time-out, reset, truncated answer, 408, 425, 5xx | again, full jitter, until `total_s`; then `ServiceUnavailableError` |
| 429, 503 with Retry-After | all calls of the key pause (`pace.Lane` says which do not); a 429's wait does not count towards `total_s`, up to `queue_s` |
| 402 | pause of `billing_pause_s`, up to `billing_s`; then `BillingError` |
| 409, 400 with an empty body (a proxy's fault) | again, a few times; then `RequestRejectedError` |
| an answer that is not the protocol | again, a few times; then `ProtocolError` |
| 507 | `ServiceStorageError`: its disk does not mend itself |
| 401, 403 | `AuthenticationError` |
| 410 (and 404 where the caller says so) | `SessionLostError` |
| other 4xx | `RequestRejectedError` |
| 3xx | `ProtocolError`: a redirect would carry the key elsewhere |

`x-should-retry: true | false` overrides the status. Retrying is always safe, because the service
knows a repeat by its sequence number. Pure logic: time and chance are the `Clock`'s.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import NamedTuple

from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceStorageError,
    ServiceUnavailableError,
    SessionLostError,
)

EXCERPT_CHARS = 500


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance, as parameters."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    """Uniform in [0, 1)."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The bounds of one call; all times in seconds."""

    attempt_s: float = 90.0
    """One exchange: write 30 and read 60."""
    total_s: float = 300.0
    """All attempts of a call together, without the time queued by 429."""
    queue_s: float = 86_400.0
    """How long 429 may keep one call waiting: a cap on models at once frees a place when some other
    trial ends. A call that has a deadline of its own waits as long as that again."""
    active_s: float = 7200.0
    """How long an operation may be active at the service without a result."""
    base_s: float = 0.5
    cap_s: float = 30.0
    retry_after_cap_s: float = 60.0
    few: int = 5
    """Attempts for failures that repeat only by accident: 409, an empty 400, a malformed answer."""
    billing_pause_s: float = 5.0
    billing_s: float = 300.0


class Kind(Enum):
    """What the caller of a failed attempt can do."""

    TRANSIENT = "transient"
    QUEUED = "queued"
    BILLING = "billing"
    CONFLICT = "conflict"
    MALFORMED = "malformed"
    FINAL = "final"


class Fault(NamedTuple):
    """One failed attempt. `error` is what it becomes when it is not retried."""

    kind: Kind
    text: str
    error: type[ServiceError]
    status: int | None = None
    retry_after_s: float | None = None
    category: str = "unknown"
    is_silence: bool = False

    @property
    def is_queued(self) -> bool:
        """Whether the time until the next attempt is the service's wish, not its failure."""
        return self.kind is Kind.QUEUED

    @property
    def slows_all(self) -> bool:
        """Whether the service asks everybody with this key to wait."""
        return self.is_queued or (self.status == 503 and self.retry_after_s is not None)


def classify(reply: Reply, *, lost_on: Set[int], clock: Clock, cap_s: float) -> Fault:
    """The fault in an answer whose status the caller does not accept."""
    status = reply.status
    text = f"HTTP {status}: {excerpt(reply.body)}" if reply.body else f"HTTP {status}"
    kind, error, category = meaning(reply, lost_on)
    override = reply.header("x-should-retry")
    if override == "true" and kind is Kind.FINAL:
        kind = Kind.TRANSIENT
    elif override == "false":
        kind = Kind.FINAL
    return Fault(kind, text, error, status, retry_after_s(reply, clock, cap_s), category)


def meaning(reply: Reply, lost_on: Set[int]) -> tuple[Kind, type[ServiceError], str]:
    """What to do about a refusal, the error that it becomes, and whose fault it is."""
    status = reply.status
    if status in lost_on:
        return Kind.FINAL, SessionLostError, "user"
    if status == 429:
        return Kind.QUEUED, ServiceUnavailableError, "server"
    if status == 507:
        return Kind.FINAL, ServiceStorageError, "server"
    if status in (408, 425) or status >= 500:
        return Kind.TRANSIENT, ServiceUnavailableError, "server"
    if status == 402:
        return Kind.BILLING, BillingError, "user"
    if status in (401, 403):
        return Kind.FINAL, AuthenticationError, "user"
    if status == 409 or (status == 400 and not reply.body):
        return Kind.CONFLICT, RequestRejectedError, "user"
    if 400 <= status < 500:
        return Kind.FINAL, RequestRejectedError, "user"
    return Kind.FINAL, ProtocolError, "server"


def excerpt(body: bytes) -> str:
    """At most 500 printable characters of an answer."""
    text = body[: EXCERPT_CHARS * 4].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)[:EXCERPT_CHARS].strip()


def retry_after_s(reply: Reply, clock: Clock, cap_s: float) -> float | None:
    """Seconds that the service asks for, within 0 and `cap_s`; None without a usable header."""
    try:
        if (text := reply.header("retry-after-ms")) is not None:
            asked_s = float(text) / 1000
        elif (text := reply.header("retry-after")) is not None:
            asked_s = _seconds(text, clock)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(asked_s) else min(max(asked_s, 0.0), cap_s)


def _seconds(text: str, clock: Clock) -> float:
    """A number, or a date; one without a zone is GMT."""
    try:
        return float(text)
    except ValueError:
        date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock.wall()


@dataclass(slots=True, eq=False)
class Retries:
    """The failures of one call so far, and what they leave it."""

    policy: RetryPolicy
    clock: Clock
    operation: str
    path: str
    own_s: float | None = None
    """The call's own bound, for `total_s` and for `queue_s`."""
    started: float = field(init=False)
    _counts: dict[Kind, int] = field(default_factory=dict)
    excused_s: float = 0.0
    """Time queued or paused for billing, which does not count towards the deadline."""

    def __post_init__(self) -> None:
        self.started = self.clock.monotonic()

    @property
    def remaining_s(self) -> float:
        total_s = self.policy.total_s if self.own_s is None else self.own_s
        return self.started + total_s + self.excused_s - self.clock.monotonic()

    @property
    def _queue_s(self) -> float:
        return self.policy.queue_s if self.own_s is None else self.own_s

    def delay_s(self, fault: Fault) -> float:
        """Seconds until the next attempt. Raises the fault's error if there is to be none."""
        count = self._counts[fault.kind] = self._counts.get(fault.kind, 0) + 1
        if fault.kind is Kind.FINAL:
            raise self.error(fault)
        if fault.kind in (Kind.CONFLICT, Kind.MALFORMED) and count >= self.policy.few:
            raise self.error(fault)
        if fault.kind is Kind.BILLING:
            return self._billing(fault, count)
        delay = fault.retry_after_s
        if delay is None:
            backoff = min(self.policy.cap_s, self.policy.base_s * 2.0 ** min(count - 1, 20))
            delay = backoff * self.clock.chance()
        if delay >= self.remaining_s + self._to_be_excused_s(fault, delay):
            raise self._exhausted(fault)
        return delay

    def _to_be_excused_s(self, fault: Fault, delay_s: float) -> float:
        return min(delay_s, self._queue_s - self.excused_s) if fault.is_queued else 0.0

    def excuse(self, wait_s: float) -> None:
        """Do not count `wait_s` towards the deadline, up to `queue_s` in all."""
        self.excused_s = min(self.excused_s + max(wait_s, 0.0), self._queue_s)

    def _billing(self, fault: Fault, count: int) -> float:
        if count * self.policy.billing_pause_s > self.policy.billing_s:
            raise self.error(fault)
        self.excused_s += self.policy.billing_pause_s
        return self.policy.billing_pause_s

    def error(self, fault: Fault) -> ServiceError:
        return self._told(fault, fault.error, f"{self.operation}: {fault.text}")

    def _exhausted(self, fault: Fault) -> ServiceError:
        attempts = sum(self._counts.values())
        waited_s = self.clock.monotonic() - self.started
        text = (
            f"{self.operation} at {self.path} did not succeed in {waited_s:.0f} s "
            f"({attempts} attempts); the last cause was: {fault.text}"
        )
        return self._told(fault, ServiceUnavailableError, text)

    def _told(self, fault: Fault, kind: type[ServiceError], text: str) -> ServiceError:
        return kind(
            text,
            status=fault.status,
            category=fault.category,
            retry_after_s=fault.retry_after_s,
            operation=self.operation,
            path=self.path,
        )
