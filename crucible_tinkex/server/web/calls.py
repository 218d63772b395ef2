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
from crucible_tinkex.server import bodies
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


class Calls:
    """`client_flags` are added to what `client/config` tells clients."""

    def __init__(self, service: Service, client_flags: Mapping[str, object]) -> None:
        self.service = service
        self._engine = service.engine
        self._operations = service.operations
        self._flags = {**CLIENT_FLAGS, **client_flags}

    def table(self) -> dict[tuple[str, str], Call]:
        """Every call by method and path."""
        calls = {
            "cancel_future": Call(bodies.CancelRequest, self._cancel),
            "create_session": Call(bodies.CreateSessionRequest, self._create_session),
            "session_heartbeat": Call(wire.SessionRequest, self._heartbeat),
            "create_model": Call(bodies.CreateModelRequest, self._create_model),
            "get_info": Call(wire.ModelRequest, self._get_info),
            "unload_model": Call(wire.ModelRequest, self._unload_model),
            "optim_step": Call(bodies.OptimStepRequest, self._optim_step),
            "save_weights": Call(bodies.SaveWeightsRequest, self._save_weights),
            "save_weights_for_sampler": Call(bodies.SaveForSamplerRequest, self._save_for_sampler),
            "save_weights_external": Call(bodies.SaveExternalRequest, self._save_external),
            "load_weights": Call(bodies.LoadWeightsRequest, self._load_weights),
            "create_sampling_session": Call(
                wire.CreateSamplingSessionRequest, self._create_sampling_session
            ),
            "asample": Call(bodies.SampleRequest, self._asample),
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

    # --- sessions and models -------------------------------------------------------------------

    def _capabilities(self, request: None, body: bytes) -> wire.Wire:
        base = self._engine.base
        model = SupportedModel(
            model_name=base.name,
            max_context_length=base.max_length,
            trainable=True,
            sampleable=True,
            tokenizer_id=base.tokenizer_id,
        )
        return ServerCapabilities(supported_models=[model])

    def _create_session(self, request: bodies.CreateSessionRequest, body: bytes) -> wire.Wire:
        return wire.CreateSessionResponse(session_id=self.service.create_session(request))

    def _heartbeat(self, request: wire.SessionRequest, body: bytes) -> dict[str, Any]:
        self.service.beat(request.session_id)
        return {"type": "session_heartbeat"}

    def _create_model(self, request: bodies.CreateModelRequest, body: bytes) -> wire.Wire:
        return wire.FutureEnvelope(request_id=self.service.create_model(request, body))

    def _get_info(self, request: wire.ModelRequest, body: bytes) -> wire.Wire:
        model = self.service.model(request.model_id)
        base = self._engine.base
        return wire.ModelInfo(
            model_id=model.model_id,
            model_data=wire.ModelData(model_name=base.name, tokenizer_id=base.tokenizer_id),
            is_lora=True,
            lora_rank=model.spec.rank,
            model_name=base.name,
        )

    def _unload_model(self, request: wire.ModelRequest, body: bytes) -> wire.Wire:
        model = self.service.model(request.model_id)
        return wire.FutureEnvelope(request_id=self.service.unload(model.model_id))

    def _optim_step(self, request: bodies.OptimStepRequest, body: bytes) -> wire.Wire:
        return wire.FutureEnvelope(request_id=self._operations.optim_step(request, body))

    def _save_weights(self, request: bodies.SaveWeightsRequest, body: bytes) -> wire.Wire:
        return wire.FutureEnvelope(request_id=self._operations.save(request, body))

    def _save_for_sampler(self, request: bodies.SaveForSamplerRequest, body: bytes) -> wire.Wire:
        return wire.FutureEnvelope(request_id=self._operations.save_for_sampler(request, body))

    def _save_external(self, request: bodies.SaveExternalRequest, body: bytes) -> wire.Wire:
        return wire.FutureEnvelope(request_id=self._operations.save_external(request, body))

    def _load_weights(self, request: bodies.LoadWeightsRequest, body: bytes) -> wire.Wire:
        if request.model_id is None:
            return wire.FutureEnvelope(request_id=self.service.create_from(request, body))
        request_id = self._operations.load(request.model_id, request, body)
        return wire.FutureEnvelope(request_id=request_id)

    # --- sampling ------------------------------------------------------------------------------

    def _create_sampling_session(
        self, request: wire.CreateSamplingSessionRequest, body: bytes
    ) -> wire.Wire:
        sampler_id = self.service.create_sampler(request)
        return wire.CreateSamplingSessionResponse(sampling_session_id=sampler_id)

    def _asample(self, request: bodies.SampleRequest, body: bytes) -> wire.Wire:
        request_id = self.service.samplers.sample(request, body)
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        return wire.FutureEnvelope(request_id=request_id, sample_sequence_ids=ids)

    # --- checkpoints ---------------------------------------------------------------------------

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

    def _cancel(self, asked: bodies.CancelRequest, body: bytes) -> dict[str, Any]:
        self.service.samplers.cancel(asked.request_id)
        return {}
