"""Sessions and the models that they hold: made, kept alive, finished.

Guarantees: every repeat of a request for a model gets the promise of the first (by its number and
body); a model beyond the limit waits, with all that is asked of it, until another goes; finishing a
session frees everything that it holds. Owned by the event loop's thread. No torch, no HTTP. What
is asked of a model is in `model_operations`, and of a sampling session in `samplers`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from crucible_tinkex.names import TinkerPath, model_id_of
from crucible_tinkex.protocol.wire import (
    CreateModelRequest,
    CreateSamplingSessionRequest,
    CreateSessionRequest,
    LoadWeightsRequest,
)
from crucible_tinkex.server.operations import (
    CreateModel,
    Engine,
    LoadWeights,
    LoraSpec,
    Operation,
    SamplerSource,
    UnloadModel,
    gone,
    refused,
)
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.dispatch import Dispatch, digest
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.model_operations import ModelOperations
from crucible_tinkex.server.sessions.samplers import Samplers, sampler_id_of
from crucible_tinkex.server.sessions.session_records import Records, Run, SessionRecord, texts
from crucible_tinkex.server.sessions.session_state import Model, Session
from crucible_tinkex.server.store.store import Store

_SWEEP_S = 5.0
MAX_LISTED_SAMPLERS = 1000
"""A session lists its last ones: a loop makes one at every step."""


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
        self.samplers = Samplers(self.dispatch, store, self._session, clock=clock)
        self.operations = ModelOperations(self.dispatch, self.records, self)
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
        )
        self.records.add(record)
        self._sessions[record.session_id] = Session(record.session_id, self._clock(), record)
        return record.session_id

    def beat(self, session_id: str) -> None:
        self._session(session_id)
        self._sweep()

    def finish_session(self, session_id: str) -> None:
        """Free the session's models and snapshots; finishing twice is no error."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            if session_id not in self._finished and session_id not in self.records.sessions:
                raise refused(f"there is no session {session_id}", 404)
            return
        self._finished[session_id] = None
        while len(self._finished) > 2 * self.limits.max_sessions:
            del self._finished[next(iter(self._finished))]
        for _, _, model in session.models.values():
            self.unload(model.model_id)
        for sampler_id in session.samplers.values():
            self.samplers.drop(sampler_id)
        self.records.finish(session.record)

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._finished or session_id in self.records.sessions:
                raise gone(f"session {session_id} is finished")
            raise refused(f"there is no session {session_id}", 404)
        session.touched_s = self._clock()
        return session

    def _sweep(self, *, force: bool = False) -> None:
        """Finish and free what nobody uses, and delete expired checkpoints, now and then."""
        now = self._clock()
        if not force and now - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now
        limit = now - self.limits.session_idle_s
        for session in [s for s in self._sessions.values() if s.touched_s < limit]:
            self.finish_session(session.session_id)
        self.samplers.free_idle()
        asyncio.get_running_loop().run_in_executor(None, self.store.purge)

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
        model = Model(model_id_of(session_id, model_seq_id), session_id, spec)
        self.dispatch.check_room(len(body))
        model.created_by = request_id = self.promises.create(len(body))
        made = operation(model.model_id)
        report = self.dispatch.reporter(request_id)
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
        model.when_placed(lambda: self.engine.submit(made, report))
        return request_id

    def _admit_waiting(self) -> None:
        """Give free places to the models that have waited longest."""
        while self._queue and len(self._models) - len(self._queue) < self.limits.max_models:
            model = self._queue.pop(next(iter(self._queue)))
            held, model.waiting = model.waiting or [], None
            self.promises.pause(model.created_by, None)
            for send in held:
                send()

    def find(self, model_id: str) -> Model | None:
        """The model, if there is one; its session is not marked as alive."""
        return self._models.get(model_id)

    def model(self, model_id: str) -> Model:
        """Raises with 404 if there is none; its session is marked as alive."""
        model = self.find(model_id)
        if model is None:
            raise refused(f"there is no model {model_id}", 404)
        self._session(model.session_id)
        return model

    def unload(self, model_id: str) -> str:
        """Free the model; requests still held for a missing number, or for a place, fail."""
        model = self._models.pop(model_id, None)
        if model is None:
            return self.dispatch.submit(UnloadModel(model_id))
        lost = gone(f"model {model_id} was unloaded")
        held = model.sequence.abandon()
        if self._queue.pop(model_id, None) is not None:
            held += [model.created_by, *model.sequence.request_ids()]
        for request_id in held:
            self.promises.resolve(request_id, lost)
        request_id = self.dispatch.submit(UnloadModel(model_id))
        self._admit_waiting()
        return request_id

    # --- sampling sessions ---------------------------------------------------------------------

    def create_sampler(self, request: CreateSamplingSessionRequest) -> str:
        checks.base_model(request.base_model, self.engine.base)
        source = self.samplers.saved(request.model_path)
        return self.add_sampler(request.session_id, request.sampling_session_seq_id, source)

    def add_snapshot(self, session_id: str, number: int, model_id: str) -> str:
        """The sampling session of weights that are on their way; `snapshot_taken` ends that."""
        source = SamplerSource(snapshot_id=sampler_id_of(session_id, number))
        sampler_id = self.add_sampler(session_id, number, source)
        self.samplers.expect(sampler_id, model_id)
        return sampler_id

    def snapshot_taken(self, sampler_id: str) -> None:
        self.samplers.settle(sampler_id)

    def add_sampler(self, session_id: str, number: int, source: SamplerSource) -> str:
        """Its id; the same number gets the same one, or is refused if the source is another."""
        session = self._session(session_id)
        sampler_id = self.samplers.add(session_id, number, source)
        if number not in session.samplers:
            session.samplers[number] = sampler_id
            session.record.sampler_ids.append(sampler_id)
            del session.record.sampler_ids[:-MAX_LISTED_SAMPLERS]
        return sampler_id
