"""Waiting for the result of an accepted operation: the long poll on `retrieve_future`.

Being queued or paused for capacity is a state, told to the session's `Watch`, never an error, and
has no deadline while the service keeps saying so. Silence of the whole service has one
(`RetryPolicy.total_s`), and so has an operation that is active without end (`active_s`). A failure
that the service reports is an `OperationFailedError`; a promise that it no longer knows is a
`SessionLostError`. An answer for another request is refused.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from crucible_tinkex.client.http.encoding import decoded, is_protobuf
from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.retry import EXCERPT_CHARS
from crucible_tinkex.client.http.transport import Call, Transport
from crucible_tinkex.client.http.watch import ACTIVE, QueueState, Watch
from crucible_tinkex.errors import (
    OperationFailedError,
    ServiceStorageError,
    ServiceUnavailableError,
)
from crucible_tinkex.protocol.wire import FutureEnvelope, RequestId, Wire

R = TypeVar("R", bound=Wire)

_ASK_AGAIN = frozenset({408})
_PROMISE_GONE = frozenset({404, 410})
_NO_STORAGE = 507
_QUICK_S = 0.2
_SLOWEST_S = 1.0


class _Probe(BaseModel):
    """Every field by which an answer that is not a result can be known; with `error`, a failure."""

    model_config = ConfigDict(extra="ignore")

    type: str | None = None
    status: str | None = None
    error: str | None = None
    category: str = "unknown"
    status_code: int | None = None
    request_id: str | None = None
    queue_state: str | None = None
    queue_state_reason: str | None = None


class Promises:
    """Turns envelopes into results. One per service session: it holds the way there, and the
    watch that all calls of the session report to."""

    def __init__(self, transport: Transport, watch: Watch) -> None:
        self.transport = transport
        self.watch = watch

    async def result(self, envelope: FutureEnvelope, model: type[R], operation: str) -> R:
        """The result of the operation that `envelope` promised."""
        try:
            return await self._poll(envelope.request_id, model, operation)
        finally:
            self.watch.moves(envelope.request_id)

    async def _poll(self, request_id: str, model: type[R], operation: str) -> R:
        call = Call(
            operation,
            "retrieve_future",
            RequestId(request_id=request_id).body(),
            accept=self.transport.encoding.accept(model),
            accepts=_ASK_AGAIN,
            lost_on=_PROMISE_GONE,
            is_poll=True,
            watch=self.watch,
        )
        clock = self.transport.clock
        idle_s, active_s, state = 0.005, 0.0, ACTIVE.state
        while True:
            asked = clock.monotonic()
            answer = await self.transport.call(call, lambda r: _parse(r, request_id, model))
            if isinstance(answer, _Probe):
                raise self._failure(answer, operation, request_id)
            if answer is not None and not isinstance(answer, QueueState):
                return answer
            took_s = clock.monotonic() - asked
            if isinstance(answer, QueueState):
                self.watch.waits(request_id, answer)
                state = answer.state
            # A service that answers at once instead of holding the poll must not be hammered.
            if took_s < _QUICK_S:
                await clock.sleep(idle_s)
                took_s, idle_s = took_s + idle_s, min(idle_s * 2, _SLOWEST_S)
            active_s = active_s + took_s if state == ACTIVE.state else 0.0
            if active_s > self.transport.policy.active_s:
                raise ServiceUnavailableError(
                    f"{operation} is active at the service for {active_s:.0f} s without a result",
                    request_id=request_id,
                    operation=operation,
                )

    def _failure(self, failed: _Probe, operation: str, request_id: str) -> OperationFailedError:
        text = self.transport.scrub((failed.error or "")[:EXCERPT_CHARS])
        kind = ServiceStorageError if failed.status_code == _NO_STORAGE else OperationFailedError
        return kind(
            f"{operation} failed at the service: {text}",
            status=failed.status_code,
            category=failed.category,
            request_id=request_id,
            operation=operation,
        )


def _parse(reply: Reply, request_id: str, model: type[R]) -> R | QueueState | _Probe | None:
    """The result, a wait, or a failure; None where the result is ready, and its size was told
    instead. Raises ValueError for anything else."""
    if reply.status == 408 and not reply.body:
        return ACTIVE
    if is_protobuf(reply):
        return decoded(reply, model)
    probe = _Probe.model_validate_json(reply.body)
    if probe.type == "try_again" or reply.status == 408:
        if probe.request_id not in (None, request_id):
            raise ValueError("the answer is for another request")
        return QueueState(probe.queue_state or ACTIVE.state, probe.queue_state_reason)
    if probe.error is not None:
        return probe
    if probe.status == "complete_metadata":
        return None
    return decoded(reply, model)
