"""What is asked of one model: its promise now, and its place in the model's order.

Guarantees: every repeat of a request gets the promise of the first (by seq_id and body); one
model's operations reach the engine in the order of their seq_ids, and none before the model has a
place; a request that is refused uses up its seq_id. Owned by the event loop's thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath, check_segment
from crucible_tinkex.protocol.wire import (
    ForwardInput,
    LoadWeightsRequest,
    OptimStepRequest,
    SaveExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)
from crucible_tinkex.server.operations import (
    LoadWeights,
    Operation,
    OptimStep,
    Outcome,
    SaveWeights,
    TakeSnapshot,
    refused,
)
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.dispatch import Dispatch, Report, digest
from crucible_tinkex.server.sessions.ordering import Sequence
from crucible_tinkex.server.sessions.samplers import sampler_id_of
from crucible_tinkex.server.sessions.session_records import Records, texts
from crucible_tinkex.server.sessions.session_state import Model
from crucible_tinkex.server.store.store import UNNAMED

UNNAMED_TTL_S = 24 * 3600
"""How long unnamed weights for sampling are kept, unless the client says it."""


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A forward or forward_backward request, whichever way it was encoded."""

    model_id: str
    seq_id: int | None
    given: ForwardInput
    backward: bool
    digest: bytes
    """Equal for a repeat, even if its encoder put things into another order."""


class Models(Protocol):
    """Who holds the models, and the sampling sessions that their snapshots become."""

    def model(self, model_id: str) -> Model:
        """Raises if there is none; its session is marked as alive."""

    def find(self, model_id: str) -> Model | None:
        """The model, if there is one; its session is not marked as alive."""

    def add_snapshot(self, session_id: str, number: int, model_id: str) -> str:
        """The id of the sampling session of a snapshot that is on its way."""

    def snapshot_taken(self, sampler_id: str) -> None:
        """It came, or will not."""


class ModelOperations:
    """Every operation returns the id of its promise, or raises `CrucibleError`."""

    def __init__(self, dispatch: Dispatch, records: Records, models: Models) -> None:
        self._dispatch = dispatch
        self._records = records
        self._models = models

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
        return self._save(request, "external_weights", body)

    def _save(
        self,
        request: SaveWeightsRequest | SaveWeightsForSamplerRequest | SaveExternalRequest,
        kind: str,
        body: bytes,
        *,
        overwrite: bool = False,
    ) -> str:
        def operation() -> Operation:
            if getattr(request, "age_encryption_recipients", None):
                raise refused(
                    "age_encryption_recipients is not supported; save without it, and download that"
                )
            path = _path(request.model_id, kind, request.path)
            ttl_seconds = checks.ttl(request.ttl_seconds)
            if path.kind == "sampler_weights" and request.path is None and ttl_seconds is None:
                ttl_seconds = UNNAMED_TTL_S
            return SaveWeights(
                request.model_id,
                path,
                overwrite,
                ttl_seconds,
                texts(request.user_metadata),
            )

        return self._in_order(request.model_id, request.seq_id, digest(body), len(body), operation)

    def save_for_sampler(self, request: SaveWeightsForSamplerRequest, body: bytes) -> str:
        number = request.sampling_session_seq_id
        if request.path is not None or number is None:
            return self._save(request, "sampler_weights", body)

        session_id = self._models.model(request.model_id).session_id

        def operation() -> Operation:
            if request.kind not in (None, "snapshot"):
                raise refused(f"kind must be snapshot, not {request.kind!r}")
            sampler_id = self._models.add_snapshot(session_id, number, request.model_id)
            return TakeSnapshot(request.model_id, sampler_id)

        def taken(outcome: Outcome) -> None:
            self._models.snapshot_taken(sampler_id_of(session_id, number))

        return self._in_order(
            request.model_id, request.seq_id, digest(body), len(body), operation, taken
        )

    def load(self, model_id: str, request: LoadWeightsRequest, body: bytes) -> str:
        """Into an existing model; `Service.create_from` makes a new one."""

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
        then: Report | None = None,
    ) -> str:
        """Check, promise, and hand to the engine when the numbers before it have come."""
        model = self._models.model(model_id)
        sequence = model.sequence
        number = sequence.following() if seq_id is None else seq_id
        repeated = sequence.repeated(number, key)
        if repeated is not None:
            return repeated
        if number != sequence.awaited or not sequence.is_awaited:
            self._dispatch.check_room(size_bytes)
        try:
            operation = make()
        except CrucibleError as e:
            request_id = self._refuse(sequence, number, key, e)
            if request_id is None:
                raise
            return request_id
        self._records.touch(model_id)
        request_id = self._dispatch.promises.create(size_bytes)
        report = self._dispatch.reporter(request_id, then)

        def send() -> None:
            self._dispatch.engine.submit(operation, report)

        sequence.admit(number, key, request_id, lambda: model.when_placed(send))
        return request_id

    def forgo(self, model_id: str, seq_id: int, body: bytes, why: CrucibleError) -> str | None:
        """A request that could not be understood uses up its number, and leaves no gap."""
        model = self._models.find(model_id)
        if model is None or not model.sequence.is_new(seq_id):
            return None
        return self._refuse(model.sequence, seq_id, digest(body), why)

    def _refuse(
        self, sequence: Sequence, number: int, key: bytes, why: CrucibleError
    ) -> str | None:
        """A promise that fails, or None: then the client may hear of it at once.

        The SDK sends the first part of a large batch last, and not at all if another part was
        refused. Its number would be missing for ever."""
        if number == sequence.awaited:
            sequence.refuse(number, key)
            return None
        request_id = self._dispatch.promises.create()
        self._dispatch.promises.resolve(request_id, why)
        sequence.admit(number, key, request_id, lambda: None)
        return request_id


def _path(model_id: str, kind: str, name: str | None) -> TinkerPath:
    chosen = f"{UNNAMED}{uuid.uuid4().hex}" if name is None else name
    return TinkerPath(model_id, kind, check_segment(chosen, what="checkpoint name"))
