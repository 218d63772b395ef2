"""Models, and what is asked of one: its promise now, and its place in the model's order.

Guarantees: every repeat of a request gets the promise of the first (by its number and body); one
model's operations reach the engine in the order of their seq_ids; a request that is refused uses up
its seq_id; a model beyond the limit is refused with 429. Owned by the event loop's thread.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath, check_segment, model_id_of
from crucible_tinkex.server.operations import (
    Adam,
    BaseInfo,
    CreateModel,
    LoadWeights,
    LoraSpec,
    Operation,
    OptimStep,
    Outcome,
    SaveWeights,
    TakeSnapshot,
    UnloadModel,
    gone,
    refused,
)
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.ordering import Sequence
from crucible_tinkex.server.sessions.promises import Promises, Report, digest
from crucible_tinkex.server.sessions.samplers import Samplers
from crucible_tinkex.server.store.store import UNNAMED, Store

UNNAMED_TTL_S = 24 * 3600
"""How long unnamed weights for sampling are kept, unless the client says it."""


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A forward or forward_backward request, whichever way it was encoded."""

    model_id: str
    seq_id: int | None
    given: wire.ForwardInput
    backward: bool
    digest: bytes
    """Equal for a repeat, even if its encoder put things into another order."""


@dataclass(slots=True)
class Model:
    """`key` and `request_id` are those of the request that made it; `used_s` is Unix time."""

    model_id: str
    session_id: str
    spec: LoraSpec
    key: bytes
    request_id: str
    user_metadata: Mapping[str, str] | None
    used_s: float = field(default_factory=time.time)
    sequence: Sequence = field(default_factory=Sequence)


class Models:
    """Every operation returns the id of its promise, or raises `CrucibleError`. `touch` marks a
    session as alive, or raises if there is none."""

    def __init__(
        self, promises: Promises, store: Store, samplers: Samplers, touch: Callable[[str], Any]
    ) -> None:
        self._promises = promises
        self._store = store
        self._samplers = samplers
        self._touch = touch
        self._models: dict[str, Model] = {}

    @property
    def _base(self) -> BaseInfo:
        return self._promises.engine.base

    def __getitem__(self, model_id: str) -> Model:
        """Raises with 404 if there is none; its session is marked as alive."""
        model = self._models.get(model_id)
        if model is None:
            raise refused(f"there is no model {model_id}", 404)
        self._touch(model.session_id)
        return model

    def all(self) -> Mapping[str, Model]:
        return self._models

    # --- a model comes and goes ----------------------------------------------------------------

    def create(self, request: checks.CreateModelRequest, body: bytes) -> str:
        checks.base_model(request.base_model, self._base)
        spec = checks.lora_spec(request.lora_config)

        def operation(model_id: str) -> Operation:
            return CreateModel(model_id, spec)

        return self._new(request, request.session_id, request.model_seq_id, spec, body, operation)

    def load(self, request: checks.LoadWeightsRequest, body: bytes) -> str:
        """Into an existing model, or as a new one."""
        model_id = request.model_id
        if model_id is not None:

            def operation() -> Operation:
                return LoadWeights(model_id, TinkerPath.parse(request.path), request.optimizer)

            return self._in_order(model_id, request.seq_id, _sent(body), operation)
        path = TinkerPath.parse(request.path)
        manifest = self._store.info(path)
        checks.base_model(manifest.base_model, self._base)
        checks.base_model(request.base_model, self._base)
        if request.session_id is None or request.model_seq_id is None:
            raise refused("load_weights needs session_id and model_seq_id, or model_id")

        def loading(model_id: str) -> Operation:
            return LoadWeights(model_id, path, request.optimizer)

        numbers = request.session_id, request.model_seq_id
        return self._new(request, *numbers, manifest.spec, body, loading)

    def _new(
        self,
        request: checks.CreateModelRequest | checks.LoadWeightsRequest,
        session_id: str,
        number: int,
        spec: LoraSpec,
        body: bytes,
        operation: Callable[[str], Operation],
    ) -> str:
        self._touch(session_id)
        model_id, key = model_id_of(session_id, number), digest(body)
        known = self._models.get(model_id)
        if known is not None:
            if known.key != key:
                raise refused(f"model_seq_id {number} was used by another request")
            return known.request_id
        self._promises.check_room(len(body))
        if len(self._models) >= self._promises.limits.max_models:
            raise self._promises.busy(f"all {len(self._models)} places for models are taken")
        request_id = self._promises.create(len(body))
        metadata = _texts(request.user_metadata)
        self._models[model_id] = Model(model_id, session_id, spec, key, request_id, metadata)
        return self._promises.submit(operation(model_id), request_id)

    def unload(self, model_id: str) -> str:
        """Free the model; requests still held for a missing number fail."""
        model = self._models.pop(model_id, None)
        for request_id in model.sequence.abandon() if model is not None else ():
            self._promises.resolve(request_id, gone(f"model {model_id} was unloaded"))
        return self._promises.submit(UnloadModel(model_id))

    def drop_session(self, session_id: str) -> None:
        for model in [m for m in self._models.values() if m.session_id == session_id]:
            self.unload(model.model_id)

    # --- what is asked of it -------------------------------------------------------------------

    def forward(self, request: ForwardRequest, found: Operation | CrucibleError, size: int) -> str:
        """`found` is what the checks made of the request of so many bytes."""

        def operation() -> Operation:
            if isinstance(found, CrucibleError):
                raise found
            return found

        sent = request.digest, size
        return self._in_order(request.model_id, request.seq_id, sent, operation)

    def optim_step(self, request: checks.OptimStepRequest, body: bytes) -> str:
        step = OptimStep(request.model_id, Adam(**request.adam_params.model_dump()))
        return self._in_order(request.model_id, request.seq_id, _sent(body), lambda: step)

    def save(self, request: checks.SaveRequest, body: bytes, kind: str = "weights") -> str:
        def operation() -> Operation:
            name, ttl_seconds = request.path, request.ttl_seconds
            if name is None:
                name = f"{UNNAMED}{uuid.uuid4().hex}"
                if kind == "sampler_weights":
                    ttl_seconds = ttl_seconds or UNNAMED_TTL_S
            path = TinkerPath(request.model_id, kind, check_segment(name, what="checkpoint name"))
            metadata = _texts(request.user_metadata)
            overwrite = bool(request.overwrite)
            return SaveWeights(request.model_id, path, overwrite, ttl_seconds, metadata)

        return self._in_order(request.model_id, request.seq_id, _sent(body), operation)

    def save_external(self, request: checks.SaveRequest, body: bytes) -> str:
        return self.save(request, body, "external_weights")

    def save_for_sampler(self, request: checks.SaveForSamplerRequest, body: bytes) -> str:
        number = request.sampling_session_seq_id
        if request.path is not None or number is None:
            return self.save(request, body, "sampler_weights")
        model = self[request.model_id]

        def operation() -> Operation:
            sampler_id = self._samplers.expect(model.session_id, number, model.model_id)
            return TakeSnapshot(model.model_id, sampler_id)

        def taken(outcome: Outcome) -> None:
            self._samplers.settle(model.session_id, number)

        return self._in_order(model.model_id, request.seq_id, _sent(body), operation, taken)

    def _in_order(
        self,
        model_id: str,
        seq_id: int | None,
        sent: tuple[bytes, int],
        make: Callable[[], Operation],
        then: Report | None = None,
    ) -> str:
        """Check, promise, and hand to the engine when the numbers before it have come."""
        model = self[model_id]
        sequence, (key, size_bytes) = model.sequence, sent
        number = sequence.following() if seq_id is None else seq_id
        repeated = sequence.repeated(number, key)
        if repeated is not None:
            return repeated
        if not sequence.unblocks(number):
            self._promises.check_room(size_bytes)
        try:
            operation = make()
        except CrucibleError as e:
            return self._refuse(sequence, number, key, e)
        model.used_s = time.time()
        request_id = self._promises.create(size_bytes)

        def release() -> None:
            self._promises.submit(operation, request_id, then)

        sequence.admit(number, key, request_id, release)
        return request_id

    def forgo(self, model_id: str, seq_id: int, body: bytes, why: CrucibleError) -> str:
        """A request that could not be understood uses up its number, and leaves no gap."""
        model = self._models.get(model_id)
        if model is None or not model.sequence.is_new(seq_id):
            raise why
        return self._refuse(model.sequence, seq_id, digest(body), why)

    def _refuse(self, sequence: Sequence, number: int, key: bytes, why: CrucibleError) -> str:
        """A promise that fails; raises `why` if the client may hear of it at once.

        The SDK sends the first part of a large batch last, and not at all if another part was
        refused. Its number would be missing for ever."""
        if number == sequence.awaited:
            sequence.admit(number, key, why)
            raise why
        request_id = self._promises.create()
        self._promises.resolve(request_id, why)
        sequence.admit(number, key, request_id)
        return request_id


def _sent(body: bytes) -> tuple[bytes, int]:
    """What tells a repeat, and the size in bytes."""
    return digest(body), len(body)


def _texts(metadata: Mapping[str, Any] | None) -> Mapping[str, str] | None:
    """User metadata as clients read it back: text by name."""
    if metadata is None:
        return None
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
