"""Sessions and models: what a request means before the engine does it.

Guarantees: every repeat of a request gets the promise of the first (by seq_id and body); one
model's operations reach the engine in the order of their seq_ids; a model beyond the limit waits,
with all that is asked of it, until another goes; finishing a session frees everything that it
holds. Owned by the event loop's thread. No torch, no HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import crucible_tinkex.client.wire as wire
from crucible_tinkex.client.wire import FinishReason, FinishSessionRequest
from crucible_tinkex.errors import CrucibleError, SessionLostError
from crucible_tinkex.names import TinkerPath, check_segment
from crucible_tinkex.server import age, checks
from crucible_tinkex.server.bodies import (
    CreateModelRequest,
    CreateSessionRequest,
    LoadWeightsRequest,
    OptimStepRequest,
    SaveExternalRequest,
    SaveForSamplerRequest,
    SaveWeightsRequest,
)
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.codec import ForwardRequest
from crucible_tinkex.server.dispatch import Dispatch, digest
from crucible_tinkex.server.held import Model, Session
from crucible_tinkex.server.limits import Limits
from crucible_tinkex.server.operations import (
    CreateModel,
    Engine,
    LoadWeights,
    LoraSpec,
    Operation,
    OptimStep,
    SamplerSource,
    SaveWeights,
    TakeSnapshot,
    UnloadModel,
)
from crucible_tinkex.server.ordering import Sequence as Order
from crucible_tinkex.server.records import Records, Run, SessionRecord, texts
from crucible_tinkex.server.samplers import Samplers
from crucible_tinkex.server.store import Store

_SWEEP_S = 5.0
_IDLE = FinishSessionRequest(reason=FinishReason(type="interrupted"), detail="it was idle")


class Service:
    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.engine = engine
        self.store = store
        self.records = Records(store.data_dir)
        self.dispatch = Dispatch(engine, self.limits, clock=clock)
        self.promises = self.dispatch.promises
        self.samplers = Samplers(self.dispatch, store, self._session)
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._finished: dict[str, None] = {}
        self._models: dict[str, Model] = {}
        self._queue: dict[str, Model] = {}
        self._swept_s = clock()

    # --- sessions ------------------------------------------------------------------------------

    def create_session(self, request: CreateSessionRequest) -> str:
        self._sweep(force=len(self._sessions) >= self.limits.max_sessions)
        if len(self._sessions) >= self.limits.max_sessions:
            raise self.dispatch.busy(f"it has {len(self._sessions)} sessions")
        record = SessionRecord(
            str(uuid.uuid4()),
            tags=request.tags,
            user_metadata=texts(request.user_metadata),
            display_name=request.display_name,
            project_id=request.project_id,
        )
        self.records.add(record)
        self._sessions[record.session_id] = Session(record.session_id, self._clock(), record)
        return record.session_id

    def beat(self, session_id: str) -> None:
        self._session(session_id)
        self._sweep()

    def finish_session(self, session_id: str, request: FinishSessionRequest | None = None) -> None:
        """Free the session's models and snapshots; finishing twice is no error."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            if session_id not in self._finished and session_id not in self.records.sessions:
                raise refused(f"there is no session {session_id}", 404)
            return
        self._finished[session_id] = None
        while len(self._finished) > 2 * self.limits.max_sessions:
            del self._finished[next(iter(self._finished))]
        given = request or _IDLE
        session.record.status = {
            "type": "client_finished",
            "reason": {"type": given.reason.type},
            "detail": given.detail,
        }
        for _, _, model in session.models.values():
            self.unload(model.model_id)
        for sampler_id in session.samplers.values():
            self.samplers.drop(sampler_id)
        self.records.save(session.record)

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._finished or session_id in self.records.sessions:
                raise SessionLostError(
                    f"session {session_id} is finished", status=410, category="user"
                )
            raise refused(f"there is no session {session_id}", 404)
        session.touched_s = self._clock()
        return session

    def _sweep(self, *, force: bool = False) -> None:
        """Finish the sessions that nobody uses and delete expired checkpoints, now and then."""
        now = self._clock()
        if not force and now - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now
        limit = now - self.limits.session_idle_s
        for session in [s for s in self._sessions.values() if s.touched_s < limit]:
            self.finish_session(session.session_id)
        self.store.purge()

    # --- models --------------------------------------------------------------------------------

    def create_model(self, request: CreateModelRequest, body: bytes) -> str:
        checks.base_model(request.base_model, self.engine.base)
        checks.optimizer(request.optimizer_config)
        spec = checks.lora_spec(request.lora_config)
        return self._new_model(
            request.session_id,
            request.model_seq_id,
            spec,
            request.user_metadata,
            body,
            lambda model_id: CreateModel(model_id, spec),
        )

    def create_from(self, request: LoadWeightsRequest, body: bytes) -> str:
        """A new model from a checkpoint."""
        path = TinkerPath.parse(request.path)
        manifest = self.store.info(path)
        checks.base_model(manifest.base_model, self.engine.base)
        checks.base_model(request.base_model, self.engine.base)
        checks.optimizer(request.optimizer_config)
        if request.session_id is None or request.model_seq_id is None:
            raise refused("load_weights needs session_id and model_seq_id, or model_id")
        return self._new_model(
            request.session_id,
            request.model_seq_id,
            manifest.spec,
            request.user_metadata,
            body,
            lambda model_id: LoadWeights(model_id, path, request.optimizer),
        )

    def _new_model(
        self,
        session_id: str,
        model_seq_id: int,
        spec: LoraSpec,
        user_metadata: Mapping[str, Any] | None,
        body: bytes,
        operation: Callable[[str], Operation],
    ) -> str:
        session = self._session(session_id)
        key = digest(body)
        known = session.models.get(model_seq_id)
        if known is not None:
            if known[0] != key:
                raise refused(f"model_seq_id {model_seq_id} was used by another request")
            return known[1]
        model = Model(f"{session_id}:train:{model_seq_id}", session_id, spec)
        if model.model_id in session.record.runs:  # a copy of weights
            raise refused(f"model_seq_id {model_seq_id} was used by another request")
        self.dispatch.check_room(len(body))
        model.created_by = request_id = self.promises.create(len(body))
        made = operation(model.model_id)
        follow = self.dispatch.timeline.begin(session_id, model.model_id, made)
        report = self.dispatch.reporter(request_id, follow)
        session.models[model_seq_id] = (key, request_id, model)
        self._models[model.model_id] = model
        metadata = texts(user_metadata)
        run = Run(model.model_id, self.engine.base.name, spec.rank, metadata)
        session.record.runs[model.model_id] = run
        self.records.save(session.record)
        if len(self._models) - len(self._queue) > self.limits.max_models:
            model.waiting = []
            self._queue[model.model_id] = model
            reason = f"all {self.limits.max_models} places for models are taken"
            self.promises.pause(request_id, reason)
        self._send(model, made, report)
        return request_id

    def _send(self, model: Model, operation: Operation, report: Callable[[Any], None]) -> None:
        if model.waiting is None:
            self.engine.submit(operation, report)
        else:
            model.waiting.append(lambda: self.engine.submit(operation, report))

    def _admit_waiting(self) -> None:
        """Give free places to the models that have waited longest."""
        while self._queue and len(self._models) - len(self._queue) < self.limits.max_models:
            model = self._queue.pop(next(iter(self._queue)))
            held, model.waiting = model.waiting or [], None
            self.promises.pause(model.created_by, None)
            for send in held:
                send()

    def model(self, model_id: str) -> Model:
        model = self._models.get(model_id)
        if model is None:
            raise refused(f"there is no model {model_id}", 404)
        self._session(model.session_id)
        return model

    def unload(self, model_id: str) -> str:
        """Free the model; requests still held for a missing number, or for a place, fail."""
        model = self._models.pop(model_id, None)
        if model is None:
            return self.dispatch.submit(UnloadModel(model_id))
        lost = SessionLostError(f"model {model_id} was unloaded", status=410, category="user")
        held = model.sequence.abandon()
        if self._queue.pop(model_id, None) is not None:
            held += [model.created_by, *model.sequence.request_ids()]
        for request_id in held:
            self.promises.resolve(request_id, lost)
        request_id = self.dispatch.submit(UnloadModel(model_id))
        self._admit_waiting()
        return request_id

    # --- operations of a model -----------------------------------------------------------------

    def forward(
        self, request: ForwardRequest, found: Operation | CrucibleError, size_bytes: int
    ) -> str:
        """`found` is what the checks made of the request."""

        def operation() -> Operation:
            if isinstance(found, CrucibleError):
                raise found
            return found

        return self._in_order(
            request.model_id, request.seq_id, request.digest, size_bytes, operation
        )

    def optim_step(self, request: OptimStepRequest, body: bytes) -> str:
        return self._in_order(
            request.model_id,
            request.seq_id,
            digest(body),
            len(body),
            lambda: OptimStep(request.model_id, checks.step(request)),
        )

    def save(self, request: SaveWeightsRequest, body: bytes) -> str:
        return self._save(request, "weights", body, overwrite=bool(request.overwrite))

    def save_external(self, request: SaveExternalRequest, body: bytes) -> str:
        keys = request.age_encryption_recipients or ()
        return self._save(request, "external_weights", body, recipients=keys)

    def _save(
        self,
        request: SaveWeightsRequest | SaveForSamplerRequest | SaveExternalRequest,
        kind: str,
        body: bytes,
        *,
        overwrite: bool = False,
        recipients: Sequence[str] = (),
    ) -> str:
        def operation() -> Operation:
            return SaveWeights(
                request.model_id,
                _path(request.model_id, kind, request.path),
                overwrite,
                checks.ttl(request.ttl_seconds),
                texts(request.user_metadata),
                age.recipients(recipients),
            )

        return self._in_order(request.model_id, request.seq_id, digest(body), len(body), operation)

    def save_for_sampler(self, request: SaveForSamplerRequest, body: bytes) -> str:
        number = request.sampling_session_seq_id
        if request.path is not None or number is None:
            return self._save(request, "sampler_weights", body)

        def operation() -> Operation:
            session_id = self._models[request.model_id].session_id
            shared = checks.is_inflight(request.kind)
            snapshot_id = request.model_id if shared else f"{session_id}:sample:{number}"
            source = SamplerSource(snapshot_id=snapshot_id)
            sampler_id = self._add_sampler(session_id, number, source)
            return TakeSnapshot(request.model_id, snapshot_id, sampler_id)

        return self._in_order(request.model_id, request.seq_id, digest(body), len(body), operation)

    def load(self, request: LoadWeightsRequest, body: bytes) -> str:
        """Into an existing model, in its order; without `model_id` it makes a new one."""
        model_id = request.model_id
        if model_id is None:
            return self.create_from(request, body)

        def operation() -> Operation:
            return LoadWeights(model_id, TinkerPath.parse(request.path), request.optimizer)

        return self._in_order(model_id, request.seq_id, digest(body), len(body), operation)

    def _in_order(
        self,
        model_id: str,
        seq_id: int | None,
        key: bytes,
        size_bytes: int,
        make: Callable[[], Operation],
    ) -> str:
        """Check, promise, and hand to the engine when the numbers before it have come."""
        model = self.model(model_id)
        sequence = model.sequence
        number = sequence.following() if seq_id is None else seq_id
        repeated = sequence.repeated(number, key)
        if repeated is not None:
            return repeated
        if number != sequence.awaited:
            self.dispatch.check_room(size_bytes)
        try:
            operation = make()
        except CrucibleError as e:
            request_id = self._refuse(sequence, number, key, e)
            if request_id is None:
                raise
            return request_id
        self.records.touch(model_id)
        request_id = self.promises.create(size_bytes)
        follow = self.dispatch.timeline.begin(model.session_id, model_id, operation)
        report = self.dispatch.reporter(request_id, follow)
        sequence.admit(number, key, request_id, lambda: self._send(model, operation, report))
        return request_id

    def forgo(self, model_id: str, seq_id: int, body: bytes, why: CrucibleError) -> str | None:
        """A request that could not be understood uses up its number, and leaves no gap."""
        model = self._models.get(model_id)
        if model is None or not model.sequence.is_new(seq_id):
            return None
        return self._refuse(model.sequence, seq_id, digest(body), why)

    def _refuse(self, sequence: Order, number: int, key: bytes, why: CrucibleError) -> str | None:
        """A promise that fails, or None: then the client may hear of it at once.

        The SDK sends the first part of a large batch last, and not at all if another part was
        refused. Its number would be missing for ever."""
        if number == sequence.awaited:
            sequence.refuse(number, key)
            return None
        request_id = self.promises.create()
        self.promises.resolve(request_id, why)
        sequence.admit(number, key, request_id, lambda: None)
        return request_id

    # --- sampling sessions ---------------------------------------------------------------------

    def create_sampler(self, request: wire.CreateSamplingSessionRequest) -> str:
        checks.base_model(request.base_model, self.engine.base)
        source = self.samplers.saved(request.model_path)
        return self._add_sampler(request.session_id, request.sampling_session_seq_id, source)

    def _add_sampler(self, session_id: str, number: int, source: SamplerSource) -> str:
        session = self._session(session_id)
        sampler_id = self.samplers.add(session_id, number, source)
        if number not in session.samplers:
            session.samplers[number] = sampler_id
            session.record.sampler_ids.append(sampler_id)
        return sampler_id


def _path(model_id: str, kind: str, name: str | None) -> TinkerPath:
    chosen = uuid.uuid4().hex if name is None else name
    return TinkerPath(model_id, kind, check_segment(chosen, what="checkpoint name"))
