"""Waiting for the result of an accepted operation: the long poll on `retrieve_future`.

Being queued or paused for capacity is a state, reported to `on_queue_state`, never an error, and
has no deadline while the service keeps saying so. Silence has one (`RetryPolicy.total_s`), and so
has an operation that is active without end (`active_s`). A failure that the service reports is an
`OperationFailedError`; a promise that it no longer knows is a `SessionLostError`. An answer for
another request is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from crucible_tinkex.client.connections import Reply
from crucible_tinkex.client.encoding import decoded, is_protobuf
from crucible_tinkex.client.retry import EXCERPT_CHARS
from crucible_tinkex.client.transport import RequestObserver, Transport
from crucible_tinkex.client.wire import FutureEnvelope, RetrieveFutureRequest, Wire
from crucible_tinkex.errors import OperationFailedError, ServiceUnavailableError

R = TypeVar("R", bound=Wire)
QueueObserver = Callable[[str, str | None], None]
"""Called with the state (`active`, `paused_capacity`, `paused_rate_limit`) and its reason."""

_ASK_AGAIN = frozenset({408})
_PROMISE_GONE = frozenset({404, 410})
_QUICK_S = 0.2
_SLOWEST_S = 1.0


class _Probe(BaseModel):
    """Every field by which an answer that is not a result can be known."""

    model_config = ConfigDict(extra="ignore")

    type: str | None = None
    status: str | None = None
    error: str | None = None
    category: str = "unknown"
    request_id: str | None = None
    queue_state: str | None = None
    queue_state_reason: str | None = None


class _Pending(NamedTuple):
    queue_state: str
    reason: str | None


class _Metadata(NamedTuple):
    """The result is ready, and its size was told instead; ask for it."""


class _Failed(NamedTuple):
    error: str
    category: str


class Promises:
    """Turns envelopes into results. One per service session; holds no state of its own."""

    def __init__(
        self,
        transport: Transport,
        *,
        on_request: RequestObserver | None = None,
        on_queue_state: QueueObserver | None = None,
        active_s: float = 7200.0,
    ) -> None:
        self._transport = transport
        self._on_request = on_request
        self._on_queue_state = on_queue_state
        self._active_s = active_s

    async def result(self, envelope: FutureEnvelope, model: type[R], operation: str) -> R:
        """The result of the operation that `envelope` promised."""
        request_id = envelope.request_id
        body = RetrieveFutureRequest(request_id=request_id).body()
        clock = self._transport.clock
        idle_s, active_s, state = 0.005, 0.0, "active"
        while True:
            asked = clock.monotonic()
            answer = await self._transport.call(
                operation,
                "retrieve_future",
                lambda reply: _parse(reply, request_id, model),
                body=body,
                accept=self._transport.encoding.accept(model),
                accepts=_ASK_AGAIN,
                lost_on=_PROMISE_GONE,
                is_poll=True,
                on_request=self._on_request,
            )
            if isinstance(answer, _Failed):
                raise self._failure(answer, operation, request_id)
            if not isinstance(answer, _Pending | _Metadata):
                self._report(state, "active", None)
                return answer
            took_s = clock.monotonic() - asked
            if isinstance(answer, _Pending):
                self._report(state, answer.queue_state, answer.reason)
                state = answer.queue_state
            # A service that answers at once instead of holding the poll must not be hammered.
            if took_s < _QUICK_S:
                await clock.sleep(idle_s)
                took_s, idle_s = took_s + idle_s, min(idle_s * 2, _SLOWEST_S)
            active_s = active_s + took_s if state == "active" else 0.0
            if active_s > self._active_s:
                raise _stuck(operation, request_id, active_s)

    def _report(self, before: str, now: str, reason: str | None) -> None:
        if self._on_queue_state is not None and before != now:
            self._on_queue_state(now, reason)

    def _failure(self, failed: _Failed, operation: str, request_id: str) -> OperationFailedError:
        text = self._transport.scrub(failed.error[:EXCERPT_CHARS])
        return OperationFailedError(
            f"{operation} failed at the service: {text}",
            category=failed.category,
            request_id=request_id,
            operation=operation,
        )


def _parse(reply: Reply, request_id: str, model: type[R]) -> R | _Pending | _Metadata | _Failed:
    """Raises ValueError for anything but the four legal answers to `request_id`."""
    if reply.status == 408 and not reply.body:
        return _Pending("active", None)
    if is_protobuf(reply):
        return decoded(reply, model)
    probe = _Probe.model_validate_json(reply.body)
    if probe.type == "try_again" or reply.status == 408:
        if probe.request_id not in (None, request_id):
            raise ValueError("the answer is for another request")
        return _Pending(probe.queue_state or "active", probe.queue_state_reason)
    if probe.error is not None:
        return _Failed(probe.error, probe.category)
    if probe.status == "complete_metadata":
        return _Metadata()
    return decoded(reply, model)


def _stuck(operation: str, request_id: str, active_s: float) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"{operation} is active at the service for {active_s:.0f} s without a result",
        request_id=request_id,
        operation=operation,
    )
