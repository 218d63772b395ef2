"""The span of one run of a sweep, and what its sessions need to tell theirs below it.

One trace per run: span `sweep` in the driver, a span `trial` for each attempt in its session's
process, and below it one for each operation. What a resumed sweep does is another trace; attributes
`sweep` and `sweep_id` find all. A span is exported when it has ended, so that of an attempt whose
process was killed is missing, and its operations stand alone in the trace.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol import traceparent
from crucible_tinkex.telemetry.bridge.catalogue import Handler
from crucible_tinkex.telemetry.tracing.asked import PARENT, Tracing, asked, may_be_set_up

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.tracing.exporting import Exporting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunTrace:
    """`handlers` for sessions of this process, `tracing` for those of others."""

    handlers: Mapping[str, Handler] = field(default_factory=dict)
    tracing: Tracing | None = None
    span: Any = None

    def ended(self, trials: Mapping[str, int]) -> None:
        """How many trials are in which state at the end."""
        if self.span is not None:
            self.span.set_attributes({f"trials.{state}": n for state, n in trials.items()})


@asynccontextmanager
async def traced(endpoint: str | None, **about: str) -> AsyncIterator[RunTrace]:
    """The run in here is a span, active and with these attributes, if that is asked for. Raises
    `ConfigError` where the experiment asks for what is not installed."""
    tracing = asked(endpoint)
    exporting = _exporting(tracing)
    if exporting is None:
        yield RunTrace()
        return
    from opentelemetry import trace

    from crucible_tinkex.telemetry.bridge.meters import NAME
    from crucible_tinkex.telemetry.bridge.otel import context_of

    given = None if traceparent.active() else os.environ.get(PARENT)
    tracer = trace.get_tracer(NAME, tracer_provider=exporting.tracers)
    try:
        with tracer.start_as_current_span(
            "sweep", context=None if given is None else context_of(given), attributes=about
        ) as span:
            header = traceparent.header_of(span)
            handlers = {"otel": exporting.handler(header)}
            onward = None if tracing is None else replace(tracing, parent=header, required=False)
            yield RunTrace(handlers, onward, span)
    finally:
        await exporting.aclose()


def joined(tracing: Tracing | None) -> tuple[Mapping[str, Handler], Exporting | None]:
    """Handlers for the sessions of another process of the run, and what is to be closed."""
    if tracing is None or (exporting := opened(tracing)) is None:
        return {}, None
    return {"otel": exporting.handler(tracing.parent)}, exporting


def opened(tracing: Tracing) -> Exporting | None:
    """None, and a warning, where it is not installed, or a variable is wrong, and it is not
    required."""
    try:
        from crucible_tinkex.telemetry.tracing.exporting import Exporting

        return Exporting.of(tracing)
    except (ImportError, ValueError, ConfigError) as error:
        told = error if isinstance(error, ConfigError) else _refusal(error)
        if tracing.required:
            raise told from None
        log.warning("the run is not traced: %s", told)
        return None


def _exporting(tracing: Tracing | None) -> Exporting | None:
    if may_be_set_up():
        from crucible_tinkex.telemetry.tracing.exporting import own_set_up

        if (own := own_set_up()) is not None:
            return own
    return None if tracing is None else opened(tracing)


def _refusal(error: ImportError | ValueError) -> ConfigError:
    if isinstance(error, ImportError):
        what = "run.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT need"
        return ConfigError(f"{what} {error.name}: pip install 'crucible-tinkex[otel]'")
    return ConfigError(f"a variable of OpenTelemetry is wrong: {error}")
