"""Sessions, models and sampling sessions: what a request means before the engine does it.

Guarantees: every repeat of a request gets the promise of the first (by seq_id and body); one
model's operations reach the engine in the order of their seq_ids; finishing a session frees
everything that it holds. Owned by the event loop's thread; the engine's answers come back to it
through `call_soon_threadsafe`. No torch, no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import crucible_tinkex.client.wire as wire
from crucible_tinkex.errors import SessionLostError
from crucible_tinkex.names import TinkerPath, check_segment
from crucible_tinkex.server import checks
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.codec import ForwardRequest
from crucible_tinkex.server.futures import Promises
from crucible_tinkex.server.operations import (
    CreateModel,
    DropSnapshot,
    Engine,
    LoadWeights,
    LoraSpec,
    Operation,
    OptimStep,
    Outcome,
    SamplerSource,
    SaveWeights,
    TakeSnapshot,
    UnloadModel,
)
from crucible_tinkex.server.ordering import Sequence
from crucible_tinkex.server.store import Store

IDLE_S = 6 * 3600.0
"""A session that neither asks nor beats for so long is finished."""


@dataclass(slots=True)
class Model:
    model_id: str
    session_id: str
    spec: LoraSpec
    sequence: Sequence = field(default_factory=Sequence)


@dataclass(slots=True)
class Sampler:
    sampler_id: str
    source: SamplerSource
    seen: dict[int, tuple[bytes, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Session:
    session_id: str
    touched_s: float
    finished: bool = False
    models: dict[int, tuple[bytes, str, Model]] = field(default_factory=dict)
    samplers: dict[int, str] = field(default_factory=dict)


class Service:
    def __init__(
        self, engine: Engine, store: Store, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.store = store
        self.promises = Promises(clock=clock)
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._models: dict[str, Model] = {}
        self._samplers: dict[str, Sampler] = {}

    # --- sessions ------------------------------------------------------------------------------

    def create_session(self) -> str:
        self._finish_idle()
        session_id = str(uuid.uuid4())
        self._sessions[session_id] = Session(session_id, self._clock())
        return session_id

    def beat(self, session_id: str) -> None:
        self._session(session_id)

    def finish_session(self, session_id: str) -> None:
        """Free the session's models and snapshots; finishing twice is no error."""
        session = self._sessions.get(session_id)
        if session is None:
            raise refused(f"there is no session {session_id}", 404)
        if session.finished:
            return
        session.finished = True
        for _, _, model in session.models.values():
            self.unload(model.model_id)
        for sampler_id in session.samplers.values():
            sampler = self._samplers.pop(sampler_id, None)
            if sampler is not None and sampler.source.snapshot_id is not None:
                self.engine.submit(DropSnapshot(sampler_id), _ignore)
        session.models.clear()
        session.samplers.clear()

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise refused(f"there is no session {session_id}", 404)
        if session.finished:
            raise SessionLostError(f"session {session_id} is finished", status=410, category="user")
        session.touched_s = self._clock()
        return session

    def _finish_idle(self) -> None:
        limit = self._clock() - IDLE_S
        for session in self._sessions.values():
            if not session.finished and session.touched_s < limit:
                self.finish_session(session.session_id)

    # --- models --------------------------------------------------------------------------------

    def create_model(self, request: wire.CreateModelRequest, body: bytes) -> str:
        checks.base_model(request.base_model, self.engine.base)
        spec = checks.lora_spec(request.lora_config)
        return self._new_model(
            request.session_id,
            request.model_seq_id,
            spec,
            body,
            lambda model_id: CreateModel(model_id, spec),
        )

    def create_from(self, request: wire.LoadWeightsRequest, body: bytes) -> str:
        """A new model from a checkpoint."""
        path = TinkerPath.parse(request.path)
        manifest = self.store.info(path)
        checks.base_model(manifest.base_model, self.engine.base)
        if request.session_id is None or request.model_seq_id is None:
            raise refused("load_weights needs session_id and model_seq_id, or model_id")
        return self._new_model(
            request.session_id,
            request.model_seq_id,
            manifest.spec,
            body,
            lambda model_id: LoadWeights(model_id, path, request.optimizer),
        )

    def _new_model(
        self,
        session_id: str,
        model_seq_id: int,
        spec: LoraSpec,
        body: bytes,
        operation: Callable[[str], Operation],
    ) -> str:
        session = self._session(session_id)
        key = _digest(body)
        known = session.models.get(model_seq_id)
        if known is not None:
            if known[0] != key:
                raise refused(f"model_seq_id {model_seq_id} was used by another request")
            return known[1]
        model = Model(f"{session_id}:train:{model_seq_id}", session_id, spec)
        request_id = self._submit(operation(model.model_id))
        session.models[model_seq_id] = (key, request_id, model)
        self._models[model.model_id] = model
        return request_id

    def model(self, model_id: str) -> Model:
        model = self._models.get(model_id)
        if model is None:
            raise refused(f"there is no model {model_id}", 404)
        self._session(model.session_id)
        return model

    def unload(self, model_id: str) -> str:
        """Free the model; requests still held for a missing number fail."""
        model = self._models.pop(model_id, None)
        for request_id in model.sequence.abandon() if model is not None else ():
            lost = SessionLostError(f"model {model_id} was unloaded", status=410, category="user")
            self.promises.resolve(request_id, lost)
        return self._submit(UnloadModel(model_id))

    # --- operations of a model -----------------------------------------------------------------

    def forward(self, request: ForwardRequest, body: bytes) -> str:
        return self._in_order(
            request.model_id,
            request.seq_id,
            body,
            lambda: checks.forward(
                request.model_id, request.given, self.engine.base, backward=request.backward
            ),
        )

    def optim_step(self, request: wire.OptimStepRequest, body: bytes) -> str:
        return self._in_order(
            request.model_id,
            request.seq_id,
            body,
            lambda: OptimStep(request.model_id, checks.adam(request.adam_params)),
        )

    def save(self, request: wire.SaveWeightsRequest, body: bytes) -> str:
        def operation() -> Operation:
            path = _path(request.model_id, "weights", request.path)
            overwrite = bool(request.overwrite)
            return SaveWeights(request.model_id, path, overwrite, request.ttl_seconds)

        return self._in_order(request.model_id, request.seq_id, body, operation)

    def save_for_sampler(self, request: wire.SaveWeightsForSamplerRequest, body: bytes) -> str:
        def operation() -> Operation:
            number = request.sampling_session_seq_id
            if request.path is not None or number is None:
                path = _path(request.model_id, "sampler_weights", request.path)
                return SaveWeights(request.model_id, path, ttl_seconds=request.ttl_seconds)
            session_id = self._models[request.model_id].session_id
            sampler_id = f"{session_id}:sample:{number}"
            self._add_sampler(session_id, number, SamplerSource(snapshot_id=sampler_id))
            return TakeSnapshot(request.model_id, sampler_id)

        return self._in_order(request.model_id, request.seq_id, body, operation)

    def load(self, request: wire.LoadWeightsRequest, body: bytes) -> str:
        """Into an existing model, in its order; without `model_id` it makes a new one."""
        model_id = request.model_id
        if model_id is None:
            return self.create_from(request, body)

        def operation() -> Operation:
            return LoadWeights(model_id, TinkerPath.parse(request.path), request.optimizer)

        return self._in_order(model_id, request.seq_id, body, operation)

    def _in_order(
        self, model_id: str, seq_id: int | None, body: bytes, make: Callable[[], Operation]
    ) -> str:
        """Check, promise, and hand to the engine when the numbers before it have come."""
        sequence = self.model(model_id).sequence
        key = _digest(body)
        number = sequence.following() if seq_id is None else seq_id
        repeated = sequence.repeated(number, key)
        if repeated is not None:
            return repeated
        try:
            operation = make()
        except Exception:
            sequence.refuse(number, key)
            raise
        request_id = self.promises.create()
        report = self._reporter(request_id)
        sequence.admit(number, key, request_id, lambda: self.engine.submit(operation, report))
        return request_id

    # --- sampling ------------------------------------------------------------------------------

    def create_sampler(self, request: wire.CreateSamplingSessionRequest) -> str:
        checks.base_model(request.base_model, self.engine.base)
        source = self._saved(request.model_path)
        return self._add_sampler(request.session_id, request.sampling_session_seq_id, source)

    def _saved(self, path: str | None) -> SamplerSource:
        if path is None:
            return SamplerSource()
        parsed = TinkerPath.parse(path)
        checks.base_model(self.store.info(parsed).base_model, self.engine.base)
        return SamplerSource(path=parsed)

    def _add_sampler(self, session_id: str, number: int, source: SamplerSource) -> str:
        session = self._session(session_id)
        sampler_id = f"{session_id}:sample:{number}"
        known = self._samplers.get(sampler_id)
        if known is None:
            self._samplers[sampler_id] = Sampler(sampler_id, source)
            session.samplers[number] = sampler_id
        elif known.source != source:
            raise refused(f"sampling_session_seq_id {number} was used by another request")
        return sampler_id

    def sampler(self, sampler_id: str) -> Sampler:
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            raise refused(f"there is no sampling session {sampler_id}", 404)
        return sampler

    def sample(self, request: wire.SampleRequest, body: bytes) -> str:
        if request.sampling_session_id is None:
            checks.base_model(request.base_model, self.engine.base)
            source = self._saved(request.model_path)
            return self._submit(checks.sample(request, source, self.engine.base))
        sampler = self.sampler(request.sampling_session_id)
        key = _digest(body)
        known = None if request.seq_id is None else sampler.seen.get(request.seq_id)
        if known is not None:
            if known[0] != key:
                raise refused(f"seq_id {request.seq_id} was used by another request")
            return known[1]
        request_id = self._submit(checks.sample(request, sampler.source, self.engine.base))
        if request.seq_id is not None:
            sampler.seen[request.seq_id] = (key, request_id)
        return request_id

    # --- the engine ----------------------------------------------------------------------------

    def _submit(self, operation: Operation) -> str:
        request_id = self.promises.create()
        self.engine.submit(operation, self._reporter(request_id))
        return request_id

    def _reporter(self, request_id: str) -> Callable[[Outcome], None]:
        loop = asyncio.get_running_loop()

        def report(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server is going down
                loop.call_soon_threadsafe(self.promises.resolve, request_id, outcome)

        return report


def _path(model_id: str, kind: str, name: str | None) -> TinkerPath:
    chosen = uuid.uuid4().hex if name is None else name
    return TinkerPath(model_id, kind, check_segment(chosen, what="checkpoint name"))


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _ignore(outcome: Outcome) -> None:
    pass
