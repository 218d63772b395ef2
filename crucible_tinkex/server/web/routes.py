"""What answers which method and path: a body and the variable parts of its path in, data out.

A path's template names its variable parts, as in `sessions/{id}/finish`; a checkpoint's identifier
is two of them, its kind and its name. Most calls accept work and answer with a promise. The key,
the bodies' bytes and the refusals are `app`'s. Handlers raise `CrucibleError`, and pydantic's
`ValidationError` or `MalformedError` for a body that cannot be read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import Response

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.server.operations import Operation
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.models import ForwardRequest
from crucible_tinkex.server.sessions.sessions import Service
from crucible_tinkex.server.store.store import expiry
from crucible_tinkex.server.web import catalogue, codec
from crucible_tinkex.server.web.exports import ARCHIVE, Exports

CLIENT_FLAGS: Mapping[str, object] = {"proto_write_fwdbwd": True}
DYNAMIC_FLAGS: Mapping[str, object] = {"sample_cancel_enabled": True}
SMALL_BYTES = 64 * 1024
"""Bodies up to this size are decoded at once, larger ones in threads, so that they hold up
nobody."""
_CHECKPOINT = "training_runs/{run}/checkpoints/{kind}/{name}"
_Given = ParamSpec("_Given")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and the variable parts of its path."""

    request: Request
    body: bytes
    params: Mapping[str, str]

    @property
    def content_type(self) -> str:
        return self.request.headers.get("content-type", codec.JSON)

    @property
    def path(self) -> TinkerPath:
        params = self.params
        return TinkerPath.parse(f"tinker://{params['run']}/{params['kind']}/{params['name']}")


Answer: TypeAlias = wire.Wire | Mapping[str, Any] | Path | Response
"""A body, a file to send, or all of it."""
Handler: TypeAlias = Callable[[Asked], Awaitable[Answer]]


async def aside(
    size_bytes: int,
    work: Callable[_Given, _Out],
    *args: _Given.args,
    **kwargs: _Given.kwargs,
) -> _Out:
    """`work(...)`, in a thread if there is much to do."""
    if size_bytes <= SMALL_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


class Routes:
    """`client_flags` are added to what `client/config` tells clients."""

    def __init__(
        self, service: Service, client_flags: Mapping[str, object], long_poll_s: float
    ) -> None:
        self._service = service
        self._store = service.store
        self._exports = Exports(service.store)
        self._long_poll_s = long_poll_s
        table = self._table({**CLIENT_FLAGS, **client_flags})
        self.names = frozenset(table)
        """Method and template of all there is."""
        self._fixed = {name: handler for name, handler in table.items() if "{" not in name}
        self._open = [
            (re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", name)), name, handler)
            for name, handler in table.items()
            if name not in self._fixed
        ]

    def find(self, method: str, path: str) -> tuple[str, Handler, Mapping[str, str]] | None:
        """Its name, who answers, and the variable parts. One without variables is found first."""
        asked = f"{method} {path}"
        if asked in self._fixed:
            return asked, self._fixed[asked], {}
        for pattern, name, handler in self._open:
            if (found := pattern.fullmatch(asked)) is not None:
                return name, handler, found.groupdict()
        return None

    def _table(self, flags: Mapping[str, object]) -> dict[str, Handler]:
        service = self._service
        models, samplers = service.models, service.samplers
        return {
            "GET healthz": _always({"status": "ok"}),
            "GET get_server_capabilities": self._capabilities,
            "POST client/config": _always(flags),
            "POST client/dynamic_config": _always(DYNAMIC_FLAGS),
            "POST telemetry": _always({"status": "accepted"}),
            "POST create_session": _call(wire.CreateSessionRequest, self._create_session),
            "POST session_heartbeat": _call(wire.SessionRequest, self._heartbeat),
            "POST sessions/{id}/finish": self._finish,
            "POST create_model": _promised(checks.CreateModelRequest, models.create),
            "POST get_info": _call(wire.ModelRequest, self._get_info),
            "POST unload_model": _promised(wire.ModelRequest, self._unload_model),
            "POST forward_backward": partial(self._train, backward=True),
            "POST forward": partial(self._train, backward=False),
            "POST optim_step": _promised(checks.OptimStepRequest, models.optim_step),
            "POST save_weights": _promised(checks.SaveRequest, models.save),
            "POST save_weights_external": _promised(checks.SaveRequest, models.save_external),
            "POST save_weights_for_sampler": _promised(
                checks.SaveForSamplerRequest, models.save_for_sampler
            ),
            "POST load_weights": _promised(checks.LoadWeightsRequest, models.load),
            "POST weights_info": _call(wire.WeightsInfoRequest, self._weights_info),
            "POST create_sampling_session": _call(
                wire.CreateSamplingSessionRequest,
                lambda request, body: {"sampling_session_id": samplers.create(request)},
            ),
            "GET samplers/{id}": self._sampler,
            "POST asample": _call(checks.SampleRequest, self._asample),
            "POST cancel_future": _call(wire.RequestId, self._cancel),
            "POST retrieve_future": self._retrieve,
            "GET training_runs": self._runs,
            "GET training_runs/{run}": self._run,
            "GET training_runs/{run}/checkpoints": self._checkpoints,
            "GET checkpoints": self._checkpoints,
            f"DELETE {_CHECKPOINT}": self._delete,
            f"PUT {_CHECKPOINT}/ttl": self._set_ttl,
            f"GET {_CHECKPOINT}/archive": self._archive,
            f"GET {_CHECKPOINT}/external_weights_urls": self._urls,
            "GET downloads/{token}/{file}": self._download,
        }

    # --- the server and its sessions -----------------------------------------------------------

    async def _capabilities(self, asked: Asked) -> Answer:
        base = self._service.engine.base
        model = SupportedModel(
            model_name=base.name,
            max_context_length=base.max_length,
            trainable=True,
            sampleable=True,
            tokenizer_id=base.tokenizer_id,
        )
        return ServerCapabilities(supported_models=[model])

    def _create_session(self, request: wire.CreateSessionRequest, body: bytes) -> Answer:
        return {"session_id": self._service.create_session()}

    def _heartbeat(self, request: wire.SessionRequest, body: bytes) -> Answer:
        self._service.beat(request.session_id)
        return {"type": "session_heartbeat"}

    async def _finish(self, asked: Asked) -> Answer:
        wire.FinishSessionRequest.model_validate_json(asked.body or b"{}")
        self._service.finish_session(asked.params["id"])
        return {}

    # --- models --------------------------------------------------------------------------------

    def _get_info(self, request: wire.ModelRequest, body: bytes) -> Answer:
        model, base = self._service.models[request.model_id], self._service.engine.base
        return wire.ModelInfo(
            model_id=model.model_id,
            model_data=wire.ModelData(model_name=base.name, tokenizer_id=base.tokenizer_id),
            is_lora=True,
            lora_rank=model.spec.rank,
            model_name=base.name,
        )

    def _unload_model(self, request: wire.ModelRequest, body: bytes) -> str:
        return self._service.models.unload(self._service.models[request.model_id].model_id)

    async def _train(self, asked: Asked, *, backward: bool) -> Answer:
        size_bytes = len(asked.body)
        decoded = await aside(
            size_bytes, codec.decode_forward, asked.body, asked.content_type, backward=backward
        )
        models = self._service.models
        model_id = models[decoded.model_id].model_id
        operation = await aside(size_bytes, self._checked, decoded)
        request_id = models.forward(decoded, operation, size_bytes)
        return wire.FutureEnvelope(request_id=request_id, model_id=model_id)

    def _checked(self, decoded: ForwardRequest) -> Operation | CrucibleError:
        """A refusal is an answer, not an exception: it has a place in the model's order."""
        base = self._service.engine.base
        try:
            return checks.forward(decoded.model_id, decoded.given, base, backward=decoded.backward)
        except CrucibleError as e:
            return e

    # --- sampling and promises -----------------------------------------------------------------

    async def _sampler(self, asked: Asked) -> Answer:
        sampler = self._service.samplers[asked.params["id"]]
        path, base_model = sampler.source.path, self._service.engine.base.name
        out = {"sampler_id": sampler.sampler_id, "base_model": base_model}
        return out if path is None else {**out, "model_path": str(path)}

    def _asample(self, request: checks.SampleRequest, body: bytes) -> Answer:
        request_id = self._service.samplers.sample(request, body)
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        return wire.FutureEnvelope(request_id=request_id, sample_sequence_ids=ids)

    def _cancel(self, asked: wire.RequestId, body: bytes) -> Answer:
        self._service.samplers.cancel(asked.request_id)
        return {}

    async def _retrieve(self, asked: Asked) -> Answer:
        request_id = wire.RequestId.model_validate_json(asked.body).request_id
        promise = await self._service.promises.wait(request_id, self._long_poll_s)
        if promise.outcome is None:
            again = wire.TryAgain(request_id=request_id)
            return Response(again.body(), 408, media_type=codec.JSON)
        accept = asked.request.headers.get("accept", codec.JSON)
        content, media_type = await aside(promise.size_bytes, codec.encode, promise.outcome, accept)
        return Response(content, media_type=media_type)

    # --- runs and checkpoints ------------------------------------------------------------------

    async def _runs(self, asked: Asked) -> Answer:
        return catalogue.runs(self._service, asked.request.query_params)

    async def _run(self, asked: Asked) -> Answer:
        return catalogue.run(self._service, asked.params["run"])

    async def _checkpoints(self, asked: Asked) -> Answer:
        run_id = asked.params.get("run")
        return catalogue.checkpoints(self._service, run_id, asked.request.query_params)

    def _weights_info(self, request: wire.WeightsInfoRequest, body: bytes) -> Answer:
        manifest = self._store.info(TinkerPath.parse(request.tinker_path))
        spec = manifest.spec
        return wire.WeightsInfo(
            base_model=manifest.base_model,
            lora_rank=spec.rank,
            train_unembed=spec.train_unembed,
            train_mlp=spec.train_mlp,
            train_attn=spec.train_attn,
        )

    async def _delete(self, asked: Asked) -> Answer:
        await asyncio.to_thread(self._store.delete, asked.path)
        return {}

    async def _set_ttl(self, asked: Asked) -> Answer:
        ttl_seconds = checks.TtlRequest.model_validate_json(asked.body).ttl_seconds
        await asyncio.to_thread(self._store.update, asked.path, expires=expiry(ttl_seconds))
        return {}

    # --- downloads -----------------------------------------------------------------------------

    async def _archive(self, asked: Asked) -> Answer:
        urls, expires = await self._export(asked)
        return {"url": urls[ARCHIVE], "expires": expires}

    async def _urls(self, asked: Asked) -> Answer:
        urls, expires = await self._export(asked)
        del urls[ARCHIVE]
        return {"urls": urls, "expires": expires}

    async def _export(self, asked: Asked) -> tuple[dict[str, str], str]:
        """A URL for every file of the export, and for all of them in one archive."""
        tokens, until = await asyncio.to_thread(self._exports.grant, asked.path)
        root = f"{asked.request.base_url}".rstrip("/")
        urls = {
            name: f"{root}{wire.API}/downloads/{token}/{name}" for name, token in tokens.items()
        }
        return urls, until.isoformat()

    async def _download(self, asked: Asked) -> Answer:
        return await asyncio.to_thread(
            self._exports.open, asked.params["token"], asked.params["file"]
        )


def _always(answer: Mapping[str, object]) -> Handler:
    async def handle(asked: Asked) -> Answer:
        return answer

    return handle


def _call(model: type[wire.Wire], act: Callable[[Any, bytes], Answer]) -> Handler:
    """`act` gets the parsed body, and the bytes that it was, which tell a repeat."""

    async def handle(asked: Asked) -> Answer:
        body = asked.body
        return act(await aside(len(body), model.model_validate_json, body), body)

    return handle


def _promised(model: type[wire.Wire], accept: Callable[[Any, bytes], str]) -> Handler:
    """`accept` gives the promise's id."""
    return _call(model, lambda given, body: wire.FutureEnvelope(request_id=accept(given, body)))
