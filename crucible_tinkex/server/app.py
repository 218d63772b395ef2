"""The HTTP face: routes, the API key, body limits, and errors as JSON. No torch behind this import.

`App` is an ASGI application over any `Engine`. Guarantees: every path but healthz needs the key
(compared in constant time); every refusal is `{"error": str, "category": "user"}` with a 4xx
status that is never 409, which clients of this protocol retry for minutes; a long-poll waits here,
without a thread, and ends with 408.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

import crucible_tinkex.client.wire as wire
from crucible_tinkex.errors import ConfigError, CrucibleError, ServiceError, StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import codec
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.operations import Engine
from crucible_tinkex.server.service import Service
from crucible_tinkex.server.store import Manifest, Store

MAX_BODY_BYTES = 64 * 1024 * 1024
LONG_POLL_S = 30.0
_KEY = wire.KEY_HEADER.lower().encode()
_KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
Handler: TypeAlias = Callable[[bytes, Request], Awaitable[Response]]
Sync: TypeAlias = Callable[[bytes], wire.Wire | dict[str, Any]]


class App:
    """`App(engine, store, key)` is what uvicorn serves. One event loop per App."""

    def __init__(
        self, engine: Engine, store: Store, api_key: str, *, long_poll_s: float = LONG_POLL_S
    ) -> None:
        self.service = Service(engine, store)
        self._engine = engine
        self._store = store
        self._key = api_key.encode()
        self._long_poll_s = long_poll_s
        self._fixed: dict[tuple[str, str], Handler] = {
            ("POST", "retrieve_future"): self._retrieve,
            ("POST", "forward_backward"): self._forward_backward,
            ("POST", "forward"): self._forward,
        }
        for (method, path), handler in self._simple().items():
            self._fixed[method, path] = _simple(handler)

    def _simple(self) -> dict[tuple[str, str], Sync]:
        """Requests answered at once from their body alone."""
        return {
            ("GET", "healthz"): lambda body: {"status": "ok"},
            ("POST", "client/config"): lambda body: {
                "pjwt_auth_enabled": False,
                "parallel_fwdbwd_chunks": False,
            },
            ("POST", "client/dynamic_config"): lambda body: {},
            ("POST", "telemetry"): lambda body: {"status": "accepted"},
            ("POST", "cancel_future"): lambda body: {},
            ("GET", "get_server_capabilities"): self._capabilities,
            ("POST", "create_session"): self._create_session,
            ("POST", "session_heartbeat"): self._heartbeat,
            ("POST", "create_model"): self._create_model,
            ("POST", "get_info"): self._get_info,
            ("POST", "unload_model"): self._unload_model,
            ("POST", "optim_step"): self._optim_step,
            ("POST", "save_weights"): self._save_weights,
            ("POST", "save_weights_for_sampler"): self._save_for_sampler,
            ("POST", "load_weights"): self._load_weights,
            ("POST", "create_sampling_session"): self._create_sampling_session,
            ("POST", "asample"): self._asample,
            ("POST", "weights_info"): self._weights_info,
            ("GET", "checkpoints"): lambda body: self._checkpoints(None),
        }

    # --- the border ----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ValidationError as e:
            response = _error(_explain(e), 400)
        except CrucibleError as e:
            response = _refusal(e)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path, method = request.scope["path"], request.scope["method"]
        if not path.startswith(f"{wire.API}/"):
            raise refused(f"there is no path {path}", 404)
        path = path.removeprefix(f"{wire.API}/").rstrip("/")
        if path != "healthz" and not self._authorised(request):
            return _error(f"the {wire.KEY_HEADER} header is missing or wrong", 401)
        handler = self._fixed.get((method, path))
        if handler is not None:
            body = b"" if method == "GET" else await _body(request)
            return await handler(body, request)
        return self._answer_resource(method, path.split("/"), request)

    def _authorised(self, request: Request) -> bool:
        given = next((v for k, v in request.scope["headers"] if k == _KEY), b"")
        return hmac.compare_digest(given, self._key)

    def _answer_resource(self, method: str, parts: list[str], request: Request) -> Response:
        """Paths with identifiers in them."""
        match method, parts:
            case "POST", ["sessions", session_id, "finish"]:
                self.service.finish_session(session_id)
                return JSONResponse({})
            case "GET", ["samplers", sampler_id]:
                return JSONResponse(self._sampler(sampler_id))
            case "GET", ["training_runs", run_id, "checkpoints"]:
                return JSONResponse(self._checkpoints(run_id))
            case "DELETE", ["training_runs", run_id, "checkpoints", kind, name]:
                self._store.delete(TinkerPath.parse(f"tinker://{run_id}/{kind}/{name}"))
                return JSONResponse({})
        if any(path == "/".join(parts) for _, path in self._fixed):
            raise refused(f"{method} is not how to use {'/'.join(parts)}", 405)
        raise refused(f"there is no path {wire.API}/{'/'.join(parts)}", 404)

    # --- futures -------------------------------------------------------------------------------

    async def _retrieve(self, body: bytes, request: Request) -> Response:
        asked = wire.RetrieveFutureRequest.model_validate_json(body)
        promise = await self.service.promises.wait(asked.request_id, self._long_poll_s)
        if promise.outcome is None:
            again = wire.TryAgain(request_id=asked.request_id)
            return Response(again.body(), 408, media_type=codec.JSON)
        accept = request.headers.get("accept", codec.JSON)
        content, media_type = codec.encode(promise.outcome, accept)
        return Response(content, media_type=media_type)

    async def _forward_backward(self, body: bytes, request: Request) -> Response:
        return self._train(body, request, backward=True)

    async def _forward(self, body: bytes, request: Request) -> Response:
        return self._train(body, request, backward=False)

    def _train(self, body: bytes, request: Request, *, backward: bool) -> Response:
        content_type = request.headers.get("content-type", codec.JSON)
        decoded = codec.decode_forward(body, content_type, backward=backward)
        request_id = self.service.forward(decoded, body)
        return _json(wire.FutureEnvelope(request_id=request_id, model_id=decoded.model_id))

    # --- sessions and models -------------------------------------------------------------------

    def _capabilities(self, body: bytes) -> wire.Wire:
        base = self._engine.base
        model = wire.SupportedModel(
            model_name=base.name,
            max_context_length=base.max_length,
            trainable=True,
            sampleable=True,
            tokenizer_id=base.tokenizer_id,
        )
        return wire.ServerCapabilities(supported_models=[model])

    def _create_session(self, body: bytes) -> wire.Wire:
        wire.CreateSessionRequest.model_validate_json(body)
        return wire.CreateSessionResponse(session_id=self.service.create_session())

    def _heartbeat(self, body: bytes) -> dict[str, Any]:
        self.service.beat(wire.SessionRequest.model_validate_json(body).session_id)
        return {"type": "session_heartbeat"}

    def _create_model(self, body: bytes) -> wire.Wire:
        request = wire.CreateModelRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self.service.create_model(request, body))

    def _get_info(self, body: bytes) -> wire.Wire:
        model = self.service.model(wire.ModelRequest.model_validate_json(body).model_id)
        base = self._engine.base
        return wire.ModelInfo(
            model_id=model.model_id,
            model_data=wire.ModelData(model_name=base.name, tokenizer_id=base.tokenizer_id),
            is_lora=True,
            lora_rank=model.spec.rank,
            model_name=base.name,
        )

    def _unload_model(self, body: bytes) -> wire.Wire:
        model = self.service.model(wire.ModelRequest.model_validate_json(body).model_id)
        return wire.FutureEnvelope(request_id=self.service.unload(model.model_id))

    def _optim_step(self, body: bytes) -> wire.Wire:
        request = wire.OptimStepRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self.service.optim_step(request, body))

    def _save_weights(self, body: bytes) -> wire.Wire:
        request = wire.SaveWeightsRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self.service.save(request, body))

    def _save_for_sampler(self, body: bytes) -> wire.Wire:
        request = wire.SaveWeightsForSamplerRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self.service.save_for_sampler(request, body))

    def _load_weights(self, body: bytes) -> wire.Wire:
        request = wire.LoadWeightsRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self.service.load(request, body))

    # --- sampling ------------------------------------------------------------------------------

    def _create_sampling_session(self, body: bytes) -> wire.Wire:
        request = wire.CreateSamplingSessionRequest.model_validate_json(body)
        sampler_id = self.service.create_sampler(request)
        return wire.CreateSamplingSessionResponse(sampling_session_id=sampler_id)

    def _asample(self, body: bytes) -> wire.Wire:
        request = wire.SampleRequest.model_validate_json(body)
        request_id = self.service.sample(request, body)
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        return wire.FutureEnvelope(request_id=request_id, sample_sequence_ids=ids)

    def _sampler(self, sampler_id: str) -> dict[str, str]:
        source = self.service.sampler(sampler_id).source
        out = {"sampler_id": sampler_id, "base_model": self._engine.base.name}
        return out if source.path is None else {**out, "model_path": str(source.path)}

    # --- checkpoints ---------------------------------------------------------------------------

    def _weights_info(self, body: bytes) -> wire.Wire:
        request = wire.WeightsInfoRequest.model_validate_json(body)
        manifest = self._store.info(TinkerPath.parse(request.tinker_path))
        spec = manifest.spec
        return wire.WeightsInfo(
            base_model=manifest.base_model,
            lora_rank=spec.rank,
            train_unembed=spec.train_unembed,
            train_mlp=spec.train_mlp,
            train_attn=spec.train_attn,
        )

    def _checkpoints(self, run_id: str | None) -> dict[str, Any]:
        found = [_checkpoint(m) for m in self._store.list(run_id)]
        cursor = {"offset": 0, "limit": len(found), "total_count": len(found)}
        return {"checkpoints": found, "cursor": cursor}


def _checkpoint(manifest: Manifest) -> dict[str, Any]:
    path = manifest.path
    return wire.Checkpoint(
        checkpoint_id=path.checkpoint_id,
        checkpoint_type=_KINDS[path.kind],
        time=manifest.created,
        tinker_path=str(path),
        size_bytes=manifest.size_bytes,
        expires_at=manifest.expires,
    ).model_dump(exclude_none=True)


def _simple(handler: Sync) -> Handler:
    async def answer(body: bytes, request: Request) -> Response:
        out = handler(body)
        return _json(out) if isinstance(out, wire.Wire) else JSONResponse(out)

    return answer


async def _body(request: Request) -> bytes:
    """The whole body, unless it is larger than `MAX_BODY_BYTES`."""
    parts: list[bytes] = []
    size_bytes = 0
    async for part in request.stream():
        size_bytes += len(part)
        if size_bytes > MAX_BODY_BYTES:
            raise refused(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
        parts.append(part)
    return b"".join(parts)


def _json(body: wire.Wire) -> Response:
    return Response(body.body(), media_type=codec.JSON)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message, "category": "user"}, status)


def _refusal(error: CrucibleError) -> Response:
    if isinstance(error, ServiceError):
        return _error(str(error), error.status or 400)
    if isinstance(error, ConfigError):
        return _error(str(error), 400)
    status = 507 if isinstance(error, StorageError) else 500
    return JSONResponse({"error": str(error), "category": "server"}, status)


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:5])
