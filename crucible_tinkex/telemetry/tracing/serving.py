"""What a server of ours does for traced requests, as spans below those of its callers.

Only requests with a `traceparent` have one, so that nothing is traced but what somebody traces. The
time of an operation is in `retrieve_future`, which waits for its turn and its work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from crucible_tinkex.protocol.traceparent import Hear
from crucible_tinkex.telemetry.tracing.asked import asked
from crucible_tinkex.telemetry.tracing.run import opened

_FAILED = 500


@contextmanager
def server_spans() -> Iterator[Hear | None]:
    """None unless this process's environment asks for it (`asked`)."""
    tracing = asked(None)
    exporting = None if tracing is None else opened(tracing)
    if exporting is None:
        yield None
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    from crucible_tinkex.telemetry.bridge.meters import NAME
    from crucible_tinkex.telemetry.bridge.otel import context_of

    tracer = exporting.tracers.get_tracer(NAME)

    def hear(route: str, status: int, seconds: float, parent: str) -> None:
        ended = time.time_ns()
        span = tracer.start_span(
            route,
            context=context_of(parent),
            kind=SpanKind.SERVER,
            attributes={"http.route": route, "http.response.status_code": status},
            start_time=ended - round(seconds * 1e9),
        )
        if status >= _FAILED:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    try:
        yield hear
    finally:
        exporting.close()
