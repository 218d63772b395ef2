"""A page on loopback that follows its sweeps: it asks for `data.json` every few seconds."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.report.page import page, script_json

FRESH_S = 2.0
"""How long an answer is given again: several open pages cost as much as one."""


def serve_page(
    data: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    port: int,
    told: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C; `told` gets the address. Raises `ConfigError` for a port in use."""
    server = page_server(data, port=port)
    told(f"http://127.0.0.1:{server.server_port}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def page_server(
    data: Callable[[], Sequence[Mapping[str, Any]]], *, port: int
) -> http.server.ThreadingHTTPServer:
    """Bound and not yet serving; port 0 takes a free one."""
    answers = _Answers(data)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").split(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(403)  # a page of another site that points its name here
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", page(answers.newest(), live=True))
            elif self.path == "/data.json":
                self._answer("application/json", script_json({"sweeps": answers.newest()}))
            else:
                self.send_error(404)

        def _answer(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as e:
        raise ConfigError(f"port {port} cannot be used: {e.strerror}; try --port 0") from e


class _Answers:
    """The newest data, made at most every `FRESH_S`."""

    def __init__(self, data: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._found: Sequence[Mapping[str, Any]] = ()
        self._made = float("-inf")

    def newest(self) -> Sequence[Mapping[str, Any]]:
        with self._lock:
            if time.monotonic() - self._made > FRESH_S:
                self._found = self._data()
                self._made = time.monotonic()
            return self._found
