"""The HTTP face: the API key, body limits, and errors as JSON. No torch behind this import.

`App` is an ASGI application over any `Engine`. Guarantees: every path but healthz and downloads
needs the key (compared in constant time); every refusal is `{"error": str, "category": str}` with a
4xx status that is never 409, which clients of this protocol retry for minutes; a long-poll waits
here, without a thread, and ends with 408. A request that cannot be understood, but whose place in
its model's order can be read, uses up that place.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import ConfigError, CrucibleError, ServiceError, StorageError
from crucible_tinkex.protocol import traceparent
from crucible_tinkex.protocol.proto import MalformedError
from crucible_tinkex.server.operations import Engine, refused
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.sessions import Service
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web import codec, openai
from crucible_tinkex.server.web.routes import Answer, Asked, Handler, Routes, aside

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of a batch to train on."""
MAX_CALL_BYTES = 4 * 1024 * 1024
"""Of any other request."""
_LARGE = frozenset(("POST forward_backward", "POST forward"))
MAX_READING_BYTES = 512 * 1024 * 1024
"""Of all bodies that are being read at a time."""
LONG_POLL_S = 30.0
_KEY = wire.KEY_HEADER.lower().encode()
_IN_ORDER = _LARGE | {
    *("POST optim_step", "POST load_weights"),
    *("POST save_weights", "POST save_weights_for_sampler", "POST save_weights_external"),
}
_OPEN = frozenset(("GET healthz", "GET downloads/{token}/{file}"))
"""What needs no key; a download's token is one."""
_log = logging.getLogger(__name__)


class App:
    """`App(engine, store, key)` is what uvicorn serves. One event loop per App. `client_flags` are
    added to what `client/config` tells clients."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        api_key: str,
        *,
        long_poll_s: float = LONG_POLL_S,
        limits: Limits | None = None,
        client_flags: Mapping[str, object] | None = None,
        hear: traceparent.Hear | None = None,
    ) -> None:
        """`hear` is told of every answer to a request that is part of a trace."""
        self._hear = hear
        self.service = Service(engine, store, limits=limits)
        self.routes = Routes(self.service, client_flags or {}, long_poll_s)
        self._openai = openai.OpenAi(self.service).table()
        self._key = api_key.encode()
        self._reading_bytes = 0

    # --- the border ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request, began = Request(scope, receive), time.perf_counter()
        path = scope["path"].rstrip("/")
        name, refuse = "unknown -", _refusal
        try:
            if path.startswith(openai.ROOT):
                refuse = openai.refusal
                response = await self._compatible(request, path.removeprefix(openai.ROOT))
            else:
                api, _, rest = path.partition(f"{wire.API}/")
                method = "GET" if request.method == "HEAD" else request.method
                found = None if api else self.routes.find(method, rest)
                name = found[0] if found else name
                response = _response(await self._answer(request, found))
        except (ValidationError, MalformedError) as e:
            response = refuse(_misread(e))
        except CrucibleError as e:
            response = refuse(e)
        except ClientDisconnect:
            return
        if _log.isEnabledFor(logging.DEBUG):  # the template: a path may hold a download's token
            _log.debug("%s %d%s", name, response.status_code, _traced(request))
        if self._hear is not None and (parent := request.headers.get(traceparent.HEADER)):
            self._hear(name, response.status_code, time.perf_counter() - began, parent)
        await response(scope, receive, send)

    async def _compatible(self, request: Request, path: str) -> Response:
        """What OpenAI's clients ask."""
        self._authorise(request)
        handler = self._openai.get((request.method, path))
        if handler is None:
            raise refused(f"there is no {request.method} {openai.ROOT}{path}", 404)
        return await handler(await self._body(request, MAX_CALL_BYTES), request)

    async def _answer(
        self, request: Request, found: tuple[str, Handler, Mapping[str, str]] | None
    ) -> Answer:
        if found is None or found[0] not in _OPEN:
            self._authorise(request)
        if found is None:
            path = request.scope["path"].removeprefix(f"{wire.API}/")
            raise refused(f"there is no {request.method} {path}", 404)
        name, handler, params = found
        limit_bytes = MAX_BODY_BYTES if name in _LARGE else MAX_CALL_BYTES
        body = b"" if name.startswith("GET") else await self._body(request, limit_bytes)
        asked = Asked(request, body, params)
        try:
            return await handler(asked)
        except (ValidationError, MalformedError) as e:
            place = None
            if name in _IN_ORDER:
                place = await aside(len(body), codec.place_of, body, asked.content_type)
            if place is None:
                raise
            request_id = self.service.models.forgo(*place, body, _misread(e))
            return wire.FutureEnvelope(request_id=request_id)

    def _authorise(self, request: Request) -> None:
        """By our header, or as OpenAI's clients send a key."""
        given = dict(request.scope["headers"])
        key = given.get(_KEY) or given.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(key, self._key):
            where = f"{wire.KEY_HEADER}, or Authorization: Bearer"
            raise refused(f"the key is missing or wrong; it goes into {where}", 401)

    async def _body(self, request: Request, limit_bytes: int) -> bytes:
        """The whole body, decompressed, unless it is larger than the limit."""
        parts: list[bytes] = []
        size_bytes = 0
        try:
            async for part in request.stream():
                size_bytes += len(part)
                self._reading_bytes += len(part)
                if size_bytes > limit_bytes:
                    raise refused(f"the body is larger than {limit_bytes} bytes", 413)
                if self._reading_bytes > MAX_READING_BYTES:
                    raise self.service.promises.busy("it is reading many large requests")
                parts.append(part)
        finally:
            self._reading_bytes -= size_bytes
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "")
        return await aside(len(body), codec.decompress, body, encoding, limit_bytes)


def _traced(request: Request) -> str:
    """The trace that a request belongs to, as an addition to a line of the log."""
    parent = traceparent.TraceParent.parse(request.headers.get(traceparent.HEADER, ""))
    return "" if parent is None else f" trace={parent.trace_id} span={parent.span_id}"


def _response(answer: Answer) -> Response:
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, wire.Wire):
        return Response(answer.body(), media_type=codec.JSON)
    return FileResponse(answer) if isinstance(answer, Path) else JSONResponse(answer)


def _refusal(error: CrucibleError) -> Response:
    status, category, headers = 500, "server", None
    if isinstance(error, ServiceError):
        status, category = error.status or 400, error.category
        if error.retry_after_s is not None:
            headers = {"retry-after": f"{error.retry_after_s:.0f}"}
    elif isinstance(error, ConfigError):
        status, category = 400, "user"
    elif isinstance(error, StorageError):
        status = 507
    said = {"error": str(error), "category": category}
    if status == 401:
        said["detail"] = str(error)  # what the SDK's command line shows
    return JSONResponse(said, status, headers)


def _misread(error: ValidationError | MalformedError) -> CrucibleError:
    if isinstance(error, MalformedError):
        return refused(str(error))
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:5]]
    return refused("; ".join(told))
