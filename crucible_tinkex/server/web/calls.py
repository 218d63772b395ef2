"""Calls that are answered from their body alone: a parsed body in, plain data out.

Most of them accept work and answer with a promise. No HTTP here: `app` has the routes, the key and
the refusals, and parses the bodies. Raises `CrucibleError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.server.sessions.lifecycle import Service

CLIENT_FLAGS: Mapping[str, object] = {"proto_write_fwdbwd": True}
DYNAMIC_FLAGS: Mapping[str, object] = {"sample_cancel_enabled": True}


@dataclass(frozen=True, slots=True)
class Call:
    """`act` is called in the event loop with the parsed body, None without a `model`, and with the
    bytes that it was, which tell a repeat."""

    model: type[wire.Wire] | None
    act: Callable[[Any, bytes], wire.Wire | dict[str, Any]]


def _always(answer: Mapping[str, Any]) -> Call:
    return Call(None, lambda request, body: dict(answer))


def _promised(model: type[wire.Wire], accept: Callable[[Any, bytes], str]) -> Call:
    """`accept` gives the promise's id."""
    return Call(model, lambda request, body: wire.FutureEnvelope(request_id=accept(request, body)))


class Calls:
    """`client_flags` are added to what `client/config` tells clients."""

    def __init__(self, service: Service, client_flags: Mapping[str, object]) -> None:
        self.service = service
        self._flags = {**CLIENT_FLAGS, **client_flags}

    def table(self) -> dict[tuple[str, str], Call]:
        """Every call by method and path."""
        service, operations = self.service, self.service.operations
        calls = {
            "cancel_future": Call(wire.RequestId, self._cancel),
            "create_session": Call(wire.CreateSessionRequest, self._create_session),
            "session_heartbeat": Call(wire.SessionRequest, self._heartbeat),
            "create_model": _promised(wire.CreateModelRequest, service.create_model),
            "get_info": Call(wire.ModelRequest, self._get_info),
            "unload_model": _promised(wire.ModelRequest, self._unload_model),
            "optim_step": _promised(wire.OptimStepRequest, operations.optim_step),
            "save_weights": _promised(wire.SaveWeightsRequest, operations.save),
            "save_weights_for_sampler": _promised(
                wire.SaveWeightsForSamplerRequest, operations.save_for_sampler
            ),
            "save_weights_external": _promised(wire.SaveExternalRequest, operations.save_external),
            "load_weights": _promised(wire.LoadWeightsRequest, self._load_weights),
            "create_sampling_session": Call(
                wire.CreateSamplingSessionRequest, self._create_sampling_session
            ),
            "asample": Call(wire.SampleRequest, self._asample),
            "weights_info": Call(wire.WeightsInfoRequest, self._weights_info),
            "client/config": _always(self._flags),
            "client/dynamic_config": _always(DYNAMIC_FLAGS),
            "telemetry": _always({"status": "accepted"}),
        }
        return {
            ("GET", "healthz"): _always({"status": "ok"}),
            ("GET", "get_server_capabilities"): Call(None, self._capabilities),
            **{("POST", path): call for path, call in calls.items()},
        }

    def _capabilities(self, request: None, body: bytes) -> wire.Wire:
        base = self.service.engine.base
        model = SupportedModel(
            model_name=base.name,
            max_context_length=base.max_length,
            trainable=True,
            sampleable=True,
            tokenizer_id=base.tokenizer_id,
        )
        return ServerCapabilities(supported_models=[model])

    def _create_session(self, request: wire.CreateSessionRequest, body: bytes) -> wire.Wire:
        return wire.CreateSessionResponse(session_id=self.service.create_session(request))

    def _heartbeat(self, request: wire.SessionRequest, body: bytes) -> dict[str, Any]:
        self.service.beat(request.session_id)
        return {"type": "session_heartbeat"}

    def _get_info(self, request: wire.ModelRequest, body: bytes) -> wire.Wire:
        model = self.service.model(request.model_id)
        base = self.service.engine.base
        return wire.ModelInfo(
            model_id=model.model_id,
            model_data=wire.ModelData(model_name=base.name, tokenizer_id=base.tokenizer_id),
            is_lora=True,
            lora_rank=model.spec.rank,
            model_name=base.name,
        )

    def _unload_model(self, request: wire.ModelRequest, body: bytes) -> str:
        return self.service.unload(self.service.model(request.model_id).model_id)

    def _load_weights(self, request: wire.LoadWeightsRequest, body: bytes) -> str:
        if request.model_id is None:
            return self.service.create_from(request, body)
        return self.service.operations.load(request.model_id, request, body)

    def _create_sampling_session(
        self, request: wire.CreateSamplingSessionRequest, body: bytes
    ) -> wire.Wire:
        sampler_id = self.service.create_sampler(request)
        return wire.CreateSamplingSessionResponse(sampling_session_id=sampler_id)

    def _asample(self, request: wire.SampleRequest, body: bytes) -> wire.Wire:
        request_id = self.service.samplers.sample(request, body)
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        return wire.FutureEnvelope(request_id=request_id, sample_sequence_ids=ids)

    def _cancel(self, asked: wire.RequestId, body: bytes) -> dict[str, Any]:
        self.service.samplers.cancel(asked.request_id)
        return {}

    def _weights_info(self, request: wire.WeightsInfoRequest, body: bytes) -> wire.Wire:
        manifest = self.service.store.info(TinkerPath.parse(request.tinker_path))
        spec = manifest.spec
        return wire.WeightsInfo(
            base_model=manifest.base_model,
            lora_rank=spec.rank,
            train_unembed=spec.train_unembed,
            train_mlp=spec.train_mlp,
            train_attn=spec.train_attn,
        )
