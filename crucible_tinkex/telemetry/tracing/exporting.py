"""The providers of one run in one process: made as OpenTelemetry's variables say, closed with it.

Exporters are found by name among the installed packages (entry points), as OpenTelemetry's own
set-up finds them, so that any may be used; `otlp` is `http/protobuf` unless OTEL_EXPORTER_OTLP_
PROTOCOL says `grpc`. Providers are the run's and never made global. Exports go on in threads, and
closing waits `CLOSE_S` at most: a receiver that is away delays nothing and is a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import TracerProvider

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.telemetry.bridge.otel import OpenTelemetryHandler
from crucible_tinkex.telemetry.tracing.asked import ENDPOINTS, Tracing
from crucible_tinkex.version import VERSION

CLOSE_S = 5.0
SERVICE = "crucible"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
log = logging.getLogger(__name__)


class Exporting:
    """Where spans and metrics go. `own`: providers of one run, which end with it; none where they
    are the process's."""

    def __init__(
        self,
        tracers: TracerProvider,
        meters: MeterProvider,
        own: Sequence[SdkTracerProvider | SdkMeterProvider] = (),
    ) -> None:
        self.tracers = tracers
        self.meters = meters
        self._own = own

    @classmethod
    def of(cls, tracing: Tracing) -> Exporting:
        """As its variables say. Raises `ConfigError` where no installed package does that."""
        with _environment(tracing.variables):
            resource = _resource()
            tracers = SdkTracerProvider(resource=resource, shutdown_on_exit=False)
            for exporter in _exporters("traces"):
                tracers.add_span_processor(BatchSpanProcessor(exporter()))
            readers = [_reader(exporter()) for exporter in _exporters("metrics")]
            meters = SdkMeterProvider(readers, resource=resource, shutdown_on_exit=False)
        return cls(tracers, meters, own=(tracers, meters))

    def handler(self, parent: str | None) -> OpenTelemetryHandler:
        return OpenTelemetryHandler(
            tracer_provider=self.tracers, meter_provider=self.meters, parent=parent
        )

    async def aclose(self) -> None:
        """As `close`, and holds nobody up."""
        if self._own:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Export what is left, and end what is its own."""

        def shut() -> None:
            for provider in self._own:
                provider.shutdown()

        # A thread of its own, which nobody waits for at the end of the process.
        closing = threading.Thread(target=shut, name="otel-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("spans and metrics were not taken within %g s", CLOSE_S)


def own_set_up() -> Exporting | None:
    """What this process has set up itself, if it has."""
    tracers = trace.get_tracer_provider()
    if not isinstance(tracers, SdkTracerProvider):
        return None
    return Exporting(tracers, metrics.get_meter_provider())


def _resource() -> Resource:
    """Metrics of several processes are told apart by their instance."""
    named = "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {} if named or os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    return Resource.create(
        {
            **name,
            "service.version": VERSION,
            "service.instance.id": uuid.uuid4().hex,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )


def _reader(exporter: Any) -> MetricReader:
    """Some, as Prometheus', are readers themselves."""
    if isinstance(exporter, MetricReader):
        return exporter
    return PeriodicExportingMetricReader(exporter)


def _exporters(signal: str) -> Iterator[Any]:
    """The classes that OTEL_TRACES_EXPORTER, or OTEL_METRICS_EXPORTER, names."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    for name in (os.environ.get(variable) or "otlp").split(","):
        if (name := name.strip()) not in ("", "none"):
            wanted = _otlp(signal) if name == "otlp" else name
            found = [*entry_points(group=f"opentelemetry_{signal}_exporter", name=wanted)]
            if not found:
                raise ConfigError(
                    f"{variable} {name!r}: no installed package exports {signal} by {wanted}; "
                    "pip install 'crucible-tinkex[otel]'"
                )
            yield found[0].load()


def _otlp(signal: str) -> str:
    variables = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    named = next((os.environ[v] for v in variables if os.environ.get(v)), "http/protobuf")
    if named not in _PROTOCOLS:
        raise ConfigError(f"{variables[1]} {named!r} must be one of {', '.join(_PROTOCOLS)}")
    return _PROTOCOLS[named]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Exporters read what they are told from the environment, when they are made. What the run
    does not name is not there; headers and certificates are this process's own."""
    before = {name: os.environ.get(name) for name in {*variables, *ENDPOINTS}}
    try:
        for name in before:
            _put(name, variables.get(name))
        yield
    finally:
        for name, value in before.items():
            _put(name, value)


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    elif os.environ.get(name) != value:
        os.environ[name] = value
