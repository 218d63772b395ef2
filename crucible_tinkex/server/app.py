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
from typing import ParamSpec, TypeAlias, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

import crucible_tinkex.client.wire as wire
from crucible_tinkex.client.proto import MalformedError
from crucible_tinkex.errors import ConfigError, CrucibleError, ServiceError, StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bodies, checks, codec
from crucible_tinkex.server.answers import Answers, Sync
from crucible_tinkex.server.catalogue import Catalogue
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.exports import ARCHIVE, Exports
from crucible_tinkex.server.limits import Limits
from crucible_tinkex.server.operations import Engine, Operation
from crucible_tinkex.server.service import Service
from crucible_tinkex.server.store import Store

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_READING_BYTES = 512 * 1024 * 1024
"""Of all bodies that are being read at a time."""
LONG_POLL_S = 30.0
SMALL_BYTES = 64 * 1024
"""Bodies up to this size are decoded at once."""
_KEY = wire.KEY_HEADER.lower().encode()
_IN_ORDER = frozenset(
    (
        *("forward_backward", "forward", "optim_step", "save_weights", "load_weights"),
        *("save_weights_for_sampler", "save_weights_external"),
    )
)
_log = logging.getLogger(__name__)
Handler: TypeAlias = Callable[[bytes, Request], Awaitable[Response]]
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
        self._answers = Answers(self.service, client_flags or {})
        self._catalogue = Catalogue(store, self.service.records)
        self._exports = Exports(store)
        self._key = api_key.encode()
        self._long_poll_s = long_poll_s
        self._reading_bytes = 0
        self._fixed: dict[tuple[str, str], Handler] = {
            ("POST", "retrieve_future"): self._retrieve,
            ("POST", "retrieve_futures"): self._retrieve_many,
            ("POST", "forward_backward"): self._forward_backward,
            ("POST", "forward"): self._forward,
            ("POST", "copy_weights"): self._copy_weights,
        }
        for (method, path), handler in self._answers.table().items():
            self._fixed[method, path] = _simple(handler)

    # --- the border ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ValidationError as e:
            response = _error(_explain(e), 400)
        except MalformedError as e:
            response = _error(str(e), 400)
        except CrucibleError as e:
            response = _refusal(e)
        except ClientDisconnect:
            return
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s %s %d", scope["method"], _told(scope["path"]), response.status_code)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path, method = request.scope["path"], request.scope["method"]
        if not path.startswith(f"{wire.API}/"):
            raise refused(f"there is no path {path}", 404)
        path = path.removeprefix(f"{wire.API}/").rstrip("/")
        if path.startswith("downloads/") and method in ("GET", "HEAD"):
            return self._download(path.split("/"))
        if path != "healthz" and not self._authorised(request):
            return _error(f"the {wire.KEY_HEADER} header is missing or wrong", 401)
        body = b"" if method == "GET" else await self._body(request)
        handler = self._fixed.get((method, path))
        if handler is None:
            return await self._answer_resource(method, path.split("/"), body, request)
        try:
            return await handler(body, request)
        except (ValidationError, MalformedError):
            place = codec.place_of(body, _content_type(request)) if path in _IN_ORDER else None
            if place is not None:
                self.service.forgo(*place, body)
            raise

    def _authorised(self, request: Request) -> bool:
        given = next((v for k, v in request.scope["headers"] if k == _KEY), b"")
        return hmac.compare_digest(given, self._key)

    async def _body(self, request: Request) -> bytes:
        """The whole body, decompressed, unless it is larger than `MAX_BODY_BYTES`."""
        parts: list[bytes] = []
        size_bytes = 0
        try:
            async for part in request.stream():
                size_bytes += len(part)
                self._reading_bytes += len(part)
                if size_bytes > MAX_BODY_BYTES:
                    raise refused(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
                if self._reading_bytes > MAX_READING_BYTES:
                    raise self.service.dispatch.busy("it is reading many large requests")
                parts.append(part)
        finally:
            self._reading_bytes -= size_bytes
        body = b"".join(parts)
        encoding = request.headers.get("content-encoding", "")
        return await _aside(len(body), codec.decompress, body, encoding, MAX_BODY_BYTES)

    async def _answer_resource(
        self, method: str, parts: list[str], body: bytes, request: Request
    ) -> Response:
        """Paths with identifiers in them. A checkpoint's identifier is two parts."""
        query = request.query_params
        match method, parts:
            case "GET", ["checkpoints"]:
                return JSONResponse(self._catalogue.checkpoints(None, query))
            case "GET", ["training_runs"]:
                return JSONResponse(self._catalogue.runs(query))
            case "GET", ["training_runs", run_id]:
                return JSONResponse(self._catalogue.run(run_id))
            case "GET", ["training_runs", run_id, "checkpoints"]:
                return JSONResponse(self._catalogue.checkpoints(run_id, query))
            case _, ["training_runs", run_id, "checkpoints", kind, name, *rest]:
                path = TinkerPath.parse(f"tinker://{run_id}/{kind}/{name}")
                return await self._answer_checkpoint(method, path, rest, body, request)
            case "GET", ["sessions"]:
                return JSONResponse(self._catalogue.sessions(query))
            case "GET", ["sessions", session_id]:
                return JSONResponse(self._catalogue.session(session_id))
            case "PUT", ["sessions", session_id, "project"]:
                asked = bodies.ProjectRequest.model_validate_json(body)
                self._catalogue.assign(session_id, asked.project_id)
                return JSONResponse({})
            case "POST", ["sessions", session_id, "finish"]:
                finish = bodies.FinishRequest.model_validate_json(body or b"{}")
                self.service.finish_session(session_id, finish)
                return JSONResponse({})
            case "GET", ["samplers", sampler_id]:
                return JSONResponse(self._answers.sampler(sampler_id))
        if any(path == "/".join(parts) for _, path in self._fixed):
            raise refused(f"{method} is not how to use {'/'.join(parts)}", 405)
        raise refused(f"there is no path {wire.API}/{'/'.join(parts)}", 404)

    async def _answer_checkpoint(
        self, method: str, path: TinkerPath, rest: list[str], body: bytes, request: Request
    ) -> Response:
        match method, rest:
            case "DELETE", []:
                self.service.store.delete(path)
            case "POST" | "DELETE", ["publish"]:
                self._catalogue.publish(path, public=method == "POST")
            case "PUT", ["ttl"]:
                asked = bodies.TtlRequest.model_validate_json(body)
                self._catalogue.set_ttl(path, asked.ttl_seconds)
            case "GET", ["archive"]:
                urls, expires = await self._export(path, request, archive=True)
                return JSONResponse({"url": urls[ARCHIVE], "expires": expires})
            case "GET", ["external_weights_urls"]:
                urls, expires = await self._export(path, request, archive=False)
                return JSONResponse({"urls": urls, "expires": expires})
            case _:
                raise refused(f"a checkpoint has no {method} {'/'.join(rest)}", 404)
        return JSONResponse({})

    # --- downloads -----------------------------------------------------------------------------

    async def _export(
        self, path: TinkerPath, request: Request, *, archive: bool
    ) -> tuple[dict[str, str], str]:
        """A URL for every file of the export, or for all of them in one archive."""
        folder = await asyncio.to_thread(self._exports.prepare, path)
        urls, expires = {}, ""
        for file in sorted(folder.iterdir()):
            if (file.name == ARCHIVE) is archive:
                token, until = self._exports.grant(path, file)
                root = f"{request.base_url}".rstrip("/")
                urls[file.name] = f"{root}{wire.API}/downloads/{token}/{file.name}"
                expires = until.isoformat()
        return urls, expires

    def _download(self, parts: list[str]) -> Response:
        if len(parts) != 3:
            raise refused("a download is downloads/TOKEN/FILE", 404)
        return FileResponse(self._exports.open(parts[1], parts[2]))

    # --- futures -------------------------------------------------------------------------------

    async def _retrieve(self, body: bytes, request: Request) -> Response:
        asked = wire.RetrieveFutureRequest.model_validate_json(body)
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

    async def _retrieve_many(self, body: bytes, request: Request) -> Response:
        asked = bodies.RetrieveFuturesRequest.model_validate_json(body)
        return JSONResponse(await self.service.samplers.completions(asked, self._long_poll_s))

    # --- training ------------------------------------------------------------------------------

    async def _forward_backward(self, body: bytes, request: Request) -> Response:
        return await self._train(body, request, backward=True)

    async def _forward(self, body: bytes, request: Request) -> Response:
        return await self._train(body, request, backward=False)

    async def _train(self, body: bytes, request: Request, *, backward: bool) -> Response:
        size_bytes = len(body)
        decoded = await _aside(
            size_bytes, codec.decode_forward, body, _content_type(request), backward=backward
        )
        self.service.model(decoded.model_id)
        operation = await _aside(size_bytes, self._checked, decoded)
        request_id = self.service.forward(decoded, operation, size_bytes)
        return _json(wire.FutureEnvelope(request_id=request_id, model_id=decoded.model_id))

    def _checked(self, decoded: codec.ForwardRequest) -> Operation | CrucibleError:
        """A refusal is an answer, not an exception: it has a place in the model's order."""
        try:
            return checks.forward(
                decoded.model_id, decoded.given, self._engine.base, backward=decoded.backward
            )
        except CrucibleError as e:
            return e

    # --- checkpoints ---------------------------------------------------------------------------

    async def _copy_weights(self, body: bytes, request: Request) -> Response:
        asked = bodies.CopyWeightsRequest.model_validate_json(body)
        key = request.headers.get("x-idempotency-key", "")
        return JSONResponse(self._catalogue.copy(asked, key))


def _simple(handler: Sync) -> Handler:
    async def answer(body: bytes, request: Request) -> Response:
        out = handler(body)
        return _json(out) if isinstance(out, wire.Wire) else JSONResponse(out)

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


def _told(path: str) -> str:
    """The path as logs may have it: a download's token is a secret."""
    return path if "/downloads/" not in path else f"{path.partition('/downloads/')[0]}/downloads/-"


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", codec.JSON)


def _json(body: wire.Wire) -> Response:
    return Response(body.body(), media_type=codec.JSON)


def _error(
    message: str, status: int, category: str = "user", *, retry_after_s: float | None = None
) -> Response:
    headers = None if retry_after_s is None else {"retry-after": f"{retry_after_s:.0f}"}
    return JSONResponse({"error": message, "category": category}, status, headers)


def _refusal(error: CrucibleError) -> Response:
    if isinstance(error, ServiceError):
        return _error(
            str(error), error.status or 400, error.category, retry_after_s=error.retry_after_s
        )
    if isinstance(error, ConfigError):
        return _error(str(error), 400)
    status = 507 if isinstance(error, StorageError) else 500
    return JSONResponse({"error": str(error), "category": "server"}, status)


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:5])
