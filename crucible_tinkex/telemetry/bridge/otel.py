"""Hands events on to OpenTelemetry: `adapter.attach("otel", OpenTelemetryHandler())`.

| of an event | is made |
|---|---|
| `session_start` to `session_end` | a span `session` (`trial`, of a sweep's attempt): the parent |
| `X_start` to `X_stop` or `X_exception` | a span `X` of `duration_s`; failed, with the error |
| `http_request_*` of a call that had trouble | a span `http_request` in that of its operation |
| `evaluation_complete`, `checkpoint_saved`, `queue_state` | a point on the session's span |
| any | metrics: see `meters` |

Sweeps attach one by themselves: see `telemetry.tracing`. Without providers the global ones are
used, as OpenTelemetry's own set-up makes them; without any set-up nothing is recorded. The span of
an operation is active while it works (`teller`), so that its calls over HTTP carry `traceparent`.
An operation that never ends has no span.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from crucible_tinkex.protocol import traceparent
from crucible_tinkex.telemetry.bridge.catalogue import OPERATIONS, BridgeEvent
from crucible_tinkex.telemetry.bridge.meters import NAME, Meters, ended, numbers, session_of
from crucible_tinkex.version import VERSION

_POINTS = ("evaluation_complete", "checkpoint_saved", "queue_state")
_STARTS = frozenset(f"{operation}_start" for operation in OPERATIONS)


class _Begun(NamedTuple):
    """An operation under way, and what was active before it."""

    span: Span
    before: Context


_under_way: ContextVar[Mapping[int, _Begun]] = ContextVar("_under_way", default={})  # noqa: B039
"""Of the operation in whose context this is read, by the handler that made it."""


class OpenTelemetryHandler:
    """See the module. One may be attached to many sessions."""

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        parent: str | None = None,
    ) -> None:
        """`parent`: the `traceparent` of the span that sessions belong to; by default the one that
        is active when they start."""
        self._tracer = trace.get_tracer(NAME, VERSION, tracer_provider)
        self._meters = Meters(meter_provider)
        self._parent = None if parent is None else context_of(parent)
        self._sessions: dict[tuple[str, str], Span] = {}

    def __call__(self, event: BridgeEvent) -> None:
        self._meters.count(event)
        if event.name == "session_start":
            self._begin(event)
        elif event.name == "session_end":
            self._end(event)
        elif event.name in _STARTS:
            self._operation_starts(event)
        elif event.name in _POINTS:
            if (span := self._sessions.get(session_of(event))) is not None:
                span.add_event(event.name, _attributes(event), _time(event))
        elif event.name.startswith("http_request"):
            self._request(event)
        elif (operation := ended(event)) is not None:
            self._operation_ends(event, operation)

    # --- sessions ------------------------------------------------------------------------------

    def _begin(self, event: BridgeEvent) -> None:
        is_trial = "trial_id" in event.metadata
        span = self._tracer.start_span(
            "trial" if is_trial else "session",
            context=self._parent,
            attributes=_attributes(event),
            start_time=_time(event),
        )
        self._sessions[session_of(event)] = span
        if is_trial:  # its work has a context of its own (`training.attempt.session`)
            contexts.attach(trace.set_span_in_context(span))

    def _end(self, event: BridgeEvent) -> None:
        """Of a session that could not be opened there was no start."""
        if (span := self._sessions.pop(session_of(event), None)) is None:
            return
        span.set_attributes(_attributes(event))
        _fail(span, event)
        span.end(_time(event))

    # --- operations ----------------------------------------------------------------------------

    def _operation_starts(self, event: BridgeEvent) -> None:
        span = self._child(event, event.name.removesuffix("_start"), _time(event))
        begun = _Begun(span, contexts.get_current())
        _under_way.set({**_under_way.get(), id(self): begun})
        contexts.attach(trace.set_span_in_context(span))

    def _operation_ends(self, event: BridgeEvent, operation: str) -> None:
        """One whose start was not told, as its handler came later, has the same length."""
        length = _length(event)
        under_way = dict(_under_way.get())
        if (begun := under_way.pop(id(self), None)) is not None:
            contexts.attach(begun.before)
        span = begun.span if begun else self._child(event, operation, _time(event) - length)
        _under_way.set(under_way)
        span.set_attributes(_attributes(event))
        _fail(span, event)
        started = getattr(span, "start_time", None)  # None: it is not recorded
        span.end(_time(event) if started is None else started + length)

    def _request(self, event: BridgeEvent) -> None:
        if event.measurements["attempts"] > 1 or "error" in event.metadata:
            begun = _under_way.get().get(id(self))
            within = None if begun is None else begun.span
            start = _time(event) - _length(event)
            span = self._child(event, "http_request", start, within)
            _fail(span, event)
            span.end(_time(event))

    def _child(self, event: BridgeEvent, name: str, start: int, parent: Span | None = None) -> Span:
        parent = parent or self._sessions.get(session_of(event))
        return self._tracer.start_span(
            name,
            context=self._parent if parent is None else trace.set_span_in_context(parent),
            attributes=_attributes(event),
            start_time=start,
        )


def context_of(parent: str) -> Context:
    """The context of a `traceparent` header's span."""
    return TraceContextTextMapPropagator().extract({traceparent.HEADER: parent})


def _fail(span: Span, event: BridgeEvent) -> None:
    if (error := event.metadata.get("error")) is not None:
        span.set_status(Status(StatusCode.ERROR, str(error)))


def _time(event: BridgeEvent) -> int:
    """In nanoseconds since 1970."""
    return int(event.measurements["crucible_timestamp"]) * 1_000_000


def _length(event: BridgeEvent) -> int:
    """In nanoseconds."""
    return round(float(event.measurements["duration_s"]) * 1e9)


def _attributes(event: BridgeEvent) -> dict[str, str | int | float | bool]:
    found: dict[str, Any] = {**numbers(event.measurements), **event.metadata}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float | bool)}
