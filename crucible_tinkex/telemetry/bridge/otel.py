"""Hands events on to OpenTelemetry: `adapter.attach("otel", OpenTelemetryHandler())`.

| of an event | is made |
|---|---|
| `session_start` to `session_end` | a span `session`, the parent of what the session does |
| `X_stop`, `X_exception` with `duration_s` | a span `X` of that length; failed, with the error |
| the same | histogram `crucible.operation.duration` in seconds, by `operation` (and `error_type`) |
| `evaluation_complete` | gauge `crucible.evaluation`, by `metric` |
| any | counter `crucible.events`, by `event` |

Without providers the global ones are used, as OpenTelemetry's own set-up makes them; without any
set-up nothing is recorded. A span is made when its operation has ended, so operations that overlap
need no matching, and one that never ends has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from crucible_tinkex.telemetry.bridge.catalogue import BridgeEvent
from crucible_tinkex.version import VERSION

NAME = "crucible_tinkex"
_ENDS = ("_stop", "_exception")
_MEASURED = ("duration_s", "crucible_timestamp")


class OpenTelemetryHandler:
    """See the module. One may be attached to many sessions."""

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(NAME, VERSION, tracer_provider)
        meter = metrics.get_meter(NAME, VERSION, meter_provider)
        self._durations = meter.create_histogram("crucible.operation.duration", unit="s")
        self._events = meter.create_counter("crucible.events")
        self._evaluation = meter.create_gauge("crucible.evaluation")
        self._sessions: dict[str, Span] = {}

    def __call__(self, event: BridgeEvent) -> None:
        experiment = str(event.metadata["experiment_id"])
        self._events.add(1, {"event": event.name, "experiment_id": experiment})
        if event.name == "session_start":
            self._begin(event, experiment)
        elif event.name == "session_end":
            self._end(event, experiment)
        elif event.name == "evaluation_complete":
            for name, value in _numbers(event.measurements).items():
                self._evaluation.set(value, {"metric": name, "experiment_id": experiment})
        for end in _ENDS:
            if event.name.endswith(end) and "duration_s" in event.measurements:
                self._operation(event, event.name.removesuffix(end), experiment)

    def _begin(self, event: BridgeEvent, experiment: str) -> None:
        self._sessions[experiment] = self._tracer.start_span(
            "session", attributes=_attributes(event), start_time=_ended(event)
        )

    def _end(self, event: BridgeEvent, experiment: str) -> None:
        """Of a session that could not be opened there was no start."""
        if (span := self._sessions.pop(experiment, None)) is None:
            return
        span.set_attributes(_attributes(event))
        _fail(span, event)
        span.end(_ended(event))

    def _operation(self, event: BridgeEvent, operation: str, experiment: str) -> None:
        duration = float(event.measurements["duration_s"])
        about = {"operation": operation, "experiment_id": experiment}
        if "error_type" in event.metadata:
            about["error_type"] = str(event.metadata["error_type"])
        self._durations.record(duration, about)
        parent = self._sessions.get(experiment)
        span = self._tracer.start_span(
            operation,
            context=None if parent is None else trace.set_span_in_context(parent),
            attributes=_attributes(event),
            start_time=_ended(event) - round(duration * 1e9),
        )
        _fail(span, event)
        span.end(_ended(event))


def _fail(span: Span, event: BridgeEvent) -> None:
    if (error := event.metadata.get("error")) is not None:
        span.set_status(Status(StatusCode.ERROR, str(error)))


def _ended(event: BridgeEvent) -> int:
    """In nanoseconds since 1970."""
    return int(event.measurements["crucible_timestamp"]) * 1_000_000


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _MEASURED
    }


def _attributes(event: BridgeEvent) -> dict[str, str | int | float | bool]:
    found = {**_numbers(event.measurements), **event.metadata}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float | bool)}
