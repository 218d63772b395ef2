"""OpenTelemetry's own SDK with exporters in memory, for tests that look at spans and metrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from crucible_tinkex.telemetry.bridge.otel import OpenTelemetryHandler


class Collector:
    """An SDK that keeps what it is given."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.handler = self.made()

    def made(self, parent: str | None = None) -> OpenTelemetryHandler:
        return OpenTelemetryHandler(
            tracer_provider=self.tracers, meter_provider=self.meters, parent=parent
        )

    def all(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def spans(self, name: str) -> list[Any]:
        return [s for s in self.all() if s.name == name]

    def families(self) -> Counter[tuple[str, str | None]]:
        """How many spans of each name below which."""
        names = {s.context.span_id: s.name for s in self.all()}
        return Counter((s.name, s.parent and names.get(s.parent.span_id)) for s in self.all())

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        scopes = [s for r in data.resource_metrics for s in r.scope_metrics] if data else []
        return [p for s in scopes for m in s.metrics if m.name == name for p in m.data.data_points]

    def total(self, name: str, **attributes: str) -> float:
        """Of a counter, over the points with these attributes."""
        fit = [p for p in self.points(name) if attributes.items() <= p.attributes.items()]
        return float(sum(p.value for p in fit))
