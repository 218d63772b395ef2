"""A receiver of OTLP over HTTP: keeps what it is sent, and reads it as protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """Of one test."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self.url = ""

    def _of(self, path: str, message: Any) -> Iterator[Any]:
        for asked, body in self.bodies:
            if asked == path:
                yield message.FromString(body)

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Each with the attributes of its process."""
        return [
            ({a.key: a.value.string_value or a.value.int_value for a in r.resource.attributes}, s)
            for request in self._of("/v1/traces", ExportTraceServiceRequest)
            for r in request.resource_spans
            for scope in r.scope_spans
            for s in scope.spans
        ]

    def metrics(self) -> dict[str, float]:
        """Sums of counters, over processes, as each told them last."""
        last: dict[tuple[str, bytes, bytes], float] = {}
        for request in self._of("/v1/metrics", ExportMetricsServiceRequest):
            for r in request.resource_metrics:
                process = r.resource.SerializeToString()
                for metric in (m for scope in r.scope_metrics for m in scope.metrics):
                    for point in metric.sum.data_points:
                        about = b"".join(sorted(a.SerializeToString() for a in point.attributes))
                        last[metric.name, process, about] = point.as_int or point.as_double
        total: dict[str, float] = {}
        for (name, _, _), value in last.items():
            total[name] = total.get(name, 0.0) + value
        return total


@contextmanager
def receiving() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.bodies.append((self.path, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
