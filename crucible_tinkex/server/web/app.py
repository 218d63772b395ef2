"""The HTTP face: routes, the API key, body limits, and errors as JSON. No torch behind this import.

`App` is an ASGI application over any `Engine`. Guarantees: every path but healthz and downloads
needs the key (compared in constant time); every refusal is `{"error": str, "category": str}` with a
4xx status that is never 409, which clients of this protocol retry for minutes; a long-poll waits
here, without a thread, and ends with 408; large bodies are decoded in threads, so that they hold up
nobody. A request that cannot be understood, but whose place in its model's order can be read, uses
up that place.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import ConfigError, CrucibleError, ServiceError, StorageError
from crucible_tinkex.protocol.proto import MalformedError
from crucible_tinkex.server.operations import Engine, Operation, refused
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.lifecycle import Service
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.model_operations import ForwardRequest
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web import codec, openai
from crucible_tinkex.server.web.calls import Call, Calls
from crucible_tinkex.server.web.rest_routes import RestRoute, RestRoutes
from crucible_tinkex.server.web.routing import Asked, Found, Routes

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of a batch to train on."""
MAX_CALL_BYTES = 4 * 1024 * 1024
"""Of any other request."""
_LARGE = frozenset(("forward_backward", "forward"))
MAX_READING_BYTES = 512 * 1024 * 1024
"""Of all bodies that are being read at a time."""
LONG_POLL_S = 30.0
SMALL_BYTES = 64 * 1024
"""Bodies up to this size are decoded at once."""
_KEY = wire.KEY_HEADER.lower().encode()
_IN_ORDER = frozenset(
    (
        *("forward_backward", "forward", "optim_step", "load_weights"),
        *("save_weights", "save_weights_for_sampler", "save_weights_external"),
    )
)
_OPEN = {
    "GET healthz",
    "GET downloads/{token}/{file}",
    "HEAD downloads/{token}/{file}",
}
"""What needs no key; a download's token is one."""
_log = logging.getLogger(__name__)
Handler: TypeAlias = Callable[[bytes, Request, Mapping[str, str]], Awaitable[Response]]
"""What answers a body, its request, and the variable parts of its path."""
_Given = ParamSpec("_Given")
_Out = TypeVar("_Out")


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
    ) -> None:
        self.service = Service(engine, store, limits=limits)
        self._engine = engine
        self._key = api_key.encode()
        self._long_poll_s = long_poll_s
        self._reading_bytes = 0
        self.routes = Routes(self._table(client_flags or {}))
        self._openai = openai.OpenAi(self.service).table()

    def _table(self, client_flags: Mapping[str, object]) -> dict[tuple[str, str], Handler]:
        """Every handler by method and template of its path."""
        calls = Calls(self.service, client_flags).table()
        rest = RestRoutes(self.service).table()
        return {
            ("POST", "retrieve_future"): self._retrieve,
            ("POST", "forward_backward"): partial(self._train, backward=True),
            ("POST", "forward"): partial(self._train, backward=False),
            **{place: _call(call) for place, call in calls.items()},
            **{place: _rest(handler) for place, handler in rest.items()},
        }

    # --- the border ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request = Request(scope, receive)
        if scope["path"].startswith(openai.ROOT):
            await (await self._compatible(request))(scope, receive, send)
            return
        api, _, path = scope["path"].rstrip("/").partition(f"{wire.API}/")
        found = None if api else self.routes.find(scope["method"], path)
        try:
            response = await self._answer(request, path, found)
        except (ValidationError, MalformedError) as e:
            response = _refusal(_misread(e))
        except CrucibleError as e:
            response = _refusal(e)
        except ClientDisconnect:
            return
        if _log.isEnabledFor(logging.DEBUG):  # the template: a path may hold a download's token
            _log.debug("%s %d", found.name if found else "unknown -", response.status_code)
        await response(scope, receive, send)

    async def _compatible(self, request: Request) -> Response:
        """What OpenAI's clients ask, answered and refused as they know it."""
        path = request.scope["path"].rstrip("/")
        try:
            if not self._authorised(request):
                raise refused("the API key is missing or wrong", 401)
            handler = self._openai.get((request.method, path.removeprefix(openai.ROOT)))
            if handler is None:
                raise refused(f"there is no {request.method} {path}", 404)
            return await handler(await self._body(request, MAX_CALL_BYTES), request)
        except ValidationError as e:
            return openai.refusal(_misread(e))
        except CrucibleError as e:
            return openai.refusal(e)
        except ClientDisconnect:
            return Response(status_code=400)

    async def _answer(self, request: Request, path: str, found: Found[Handler] | None) -> Response:
        is_open = found is not None and found.name in _OPEN
        if not is_open and not self._authorised(request):
            return _unauthorised()
        if found is None:
            raise refused(f"there is no {request.method} {path or request.scope['path']}", 404)
        limit_bytes = MAX_BODY_BYTES if path in _LARGE else MAX_CALL_BYTES
        body = b"" if request.method == "GET" else await self._body(request, limit_bytes)
        try:
            return await found.handler(body, request, found.params)
        except (ValidationError, MalformedError) as e:
            place = None
            if path in _IN_ORDER:
                place = await _aside(len(body), codec.place_of, body, _content_type(request))
            request_id = self.service.operations.forgo(*place, body, _misread(e)) if place else None
            if request_id is None:
                raise
            return _json(wire.FutureEnvelope(request_id=request_id))

    def _authorised(self, request: Request) -> bool:
        """By our header, or as OpenAI's clients send a key."""
        given = dict(request.scope["headers"])
        key = given.get(_KEY) or given.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(key, self._key)

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
                    raise self.service.dispatch.busy("it is reading many large requests")
                parts.append(part)
        finally:
            self._reading_bytes -= size_bytes
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "")
        return await _aside(len(body), codec.decompress, body, encoding, limit_bytes)

    # --- futures -------------------------------------------------------------------------------

    async def _retrieve(self, body: bytes, request: Request, params: Mapping[str, str]) -> Response:
        asked = wire.RequestId.model_validate_json(body)
        promise = await self.service.promises.wait(asked.request_id, self._long_poll_s)
        if promise.outcome is None:
            again = wire.TryAgain(request_id=asked.request_id)
            if promise.paused is not None:
                again.queue_state, again.queue_state_reason = "paused_capacity", promise.paused
            return Response(again.body(), 408, media_type=codec.JSON)
        accept = request.headers.get("accept", codec.JSON)
        content, media_type = await _aside(
            promise.size_bytes, codec.encode, promise.outcome, accept
        )
        return Response(content, media_type=media_type)

    # --- training ------------------------------------------------------------------------------

    async def _train(
        self, body: bytes, request: Request, params: Mapping[str, str], *, backward: bool
    ) -> Response:
        size_bytes = len(body)
        decoded = await _aside(
            size_bytes, codec.decode_forward, body, _content_type(request), backward=backward
        )
        self.service.model(decoded.model_id)
        operation = await _aside(size_bytes, self._checked, decoded)
        request_id = self.service.operations.forward(decoded, operation, size_bytes)
        return _json(wire.FutureEnvelope(request_id=request_id, model_id=decoded.model_id))

    def _checked(self, decoded: ForwardRequest) -> Operation | CrucibleError:
        """A refusal is an answer, not an exception: it has a place in the model's order."""
        try:
            return checks.forward(
                decoded.model_id, decoded.given, self._engine.base, backward=decoded.backward
            )
        except CrucibleError as e:
            return e


def _call(call: Call) -> Handler:
    async def answer(body: bytes, request: Request, params: Mapping[str, str]) -> Response:
        given = None
        if call.model is not None:
            given = await _aside(len(body), call.model.model_validate_json, body)
        out = call.act(given, body)
        return _json(out) if isinstance(out, wire.Wire) else JSONResponse(out)

    return answer


def _rest(handler: RestRoute) -> Handler:
    async def answer(body: bytes, request: Request, params: Mapping[str, str]) -> Response:
        root = f"{request.base_url}".rstrip("/")
        out = await handler(Asked(body, params, request.query_params, request.headers, root))
        return FileResponse(out) if isinstance(out, Path) else JSONResponse(out)

    return answer


async def _aside(
    size_bytes: int,
    work: Callable[_Given, _Out],
    *args: _Given.args,
    **kwargs: _Given.kwargs,
) -> _Out:
    """`work(...)`, in a thread if there is much to do."""
    if size_bytes <= SMALL_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", codec.JSON)


def _json(body: wire.Wire) -> Response:
    return Response(body.body(), media_type=codec.JSON)


def _unauthorised() -> Response:
    """`detail` is what the SDK's command line shows."""
    said = f"the {wire.KEY_HEADER} header is missing or wrong"
    return JSONResponse({"error": said, "category": "user", "detail": said}, 401)


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
    return JSONResponse({"error": str(error), "category": category}, status, headers)


def _misread(error: ValidationError | MalformedError) -> CrucibleError:
    if isinstance(error, MalformedError):
        return refused(str(error))
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:5]]
    return refused("; ".join(told))
