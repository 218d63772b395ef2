"""Requests that are answered at once from their body alone: bytes in, plain data out.

Most of them accept work and answer with a promise. No HTTP here: `app` has the routes, the key and
the refusals. Raises pydantic's ValidationError and `CrucibleError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import crucible_tinkex.client.wire as wire
from crucible_tinkex.client.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bodies
from crucible_tinkex.server.service import Service

CLIENT_FLAGS: Mapping[str, object] = {"proto_write_fwdbwd": True}
DYNAMIC_FLAGS: Mapping[str, object] = {"sample_cancel_enabled": True}
Sync: TypeAlias = Callable[[bytes], wire.Wire | dict[str, Any]]


class Answers:
    """`client_flags` are added to what `client/config` tells clients."""

    def __init__(self, service: Service, client_flags: Mapping[str, object]) -> None:
        self.service = service
        self._engine = service.engine
        self._operations = service.operations
        self._flags = {**CLIENT_FLAGS, **client_flags}

    def table(self) -> dict[tuple[str, str], Sync]:
        """Every handler by method and path."""
        return {
            ("GET", "healthz"): lambda body: {"status": "ok"},
            ("POST", "client/config"): lambda body: dict(self._flags),
            ("POST", "client/dynamic_config"): lambda body: dict(DYNAMIC_FLAGS),
            ("POST", "telemetry"): lambda body: {"status": "accepted"},
            ("POST", "cancel_future"): self._cancel,
            ("GET", "get_server_capabilities"): self._capabilities,
            ("POST", "create_session"): self._create_session,
            ("POST", "session_heartbeat"): self._heartbeat,
            ("POST", "create_model"): self._create_model,
            ("POST", "get_info"): self._get_info,
            ("POST", "unload_model"): self._unload_model,
            ("POST", "optim_step"): self._optim_step,
            ("POST", "save_weights"): self._save_weights,
            ("POST", "save_weights_for_sampler"): self._save_for_sampler,
            ("POST", "save_weights_external"): self._save_external,
            ("POST", "load_weights"): self._load_weights,
            ("POST", "create_sampling_session"): self._create_sampling_session,
            ("POST", "asample"): self._asample,
            ("POST", "weights_info"): self._weights_info,
        }

    # --- sessions and models -------------------------------------------------------------------

    def _capabilities(self, body: bytes) -> wire.Wire:
        base = self._engine.base
        model = SupportedModel(
            model_name=base.name,
            max_context_length=base.max_length,
            trainable=True,
            sampleable=True,
            tokenizer_id=base.tokenizer_id,
        )
        return ServerCapabilities(supported_models=[model])

    def _create_session(self, body: bytes) -> wire.Wire:
        request = bodies.CreateSessionRequest.model_validate_json(body)
        return wire.CreateSessionResponse(session_id=self.service.create_session(request))

    def _heartbeat(self, body: bytes) -> dict[str, Any]:
        self.service.beat(wire.SessionRequest.model_validate_json(body).session_id)
        return {"type": "session_heartbeat"}

    def _create_model(self, body: bytes) -> wire.Wire:
        request = bodies.CreateModelRequest.model_validate_json(body)
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
        request = bodies.OptimStepRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self._operations.optim_step(request, body))

    def _save_weights(self, body: bytes) -> wire.Wire:
        request = bodies.SaveWeightsRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self._operations.save(request, body))

    def _save_for_sampler(self, body: bytes) -> wire.Wire:
        request = bodies.SaveForSamplerRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self._operations.save_for_sampler(request, body))

    def _save_external(self, body: bytes) -> wire.Wire:
        request = bodies.SaveExternalRequest.model_validate_json(body)
        return wire.FutureEnvelope(request_id=self._operations.save_external(request, body))

    def _load_weights(self, body: bytes) -> wire.Wire:
        request = bodies.LoadWeightsRequest.model_validate_json(body)
        if request.model_id is None:
            return wire.FutureEnvelope(request_id=self.service.create_from(request, body))
        request_id = self._operations.load(request.model_id, request, body)
        return wire.FutureEnvelope(request_id=request_id)

    # --- sampling ------------------------------------------------------------------------------

    def _create_sampling_session(self, body: bytes) -> wire.Wire:
        request = wire.CreateSamplingSessionRequest.model_validate_json(body)
        sampler_id = self.service.create_sampler(request)
        return wire.CreateSamplingSessionResponse(sampling_session_id=sampler_id)

    def _asample(self, body: bytes) -> wire.Wire:
        request = bodies.SampleRequest.model_validate_json(body)
        request_id = self.service.samplers.sample(request, body)
        ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        return wire.FutureEnvelope(request_id=request_id, sample_sequence_ids=ids)

    # --- checkpoints ---------------------------------------------------------------------------

    def _weights_info(self, body: bytes) -> wire.Wire:
        request = wire.WeightsInfoRequest.model_validate_json(body)
        manifest = self.service.store.info(TinkerPath.parse(request.tinker_path))
        spec = manifest.spec
        return wire.WeightsInfo(
            base_model=manifest.base_model,
            lora_rank=spec.rank,
            train_unembed=spec.train_unembed,
            train_mlp=spec.train_mlp,
            train_attn=spec.train_attn,
        )

    def _cancel(self, body: bytes) -> dict[str, Any]:
        asked = bodies.CancelRequest.model_validate_json(body)
        self.service.samplers.cancel(asked.request_id)
        return {}
