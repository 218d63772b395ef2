"""Sampling sessions: whose weights they use, and their requests.

Guarantees: a repeat of a sampling request (same seq_id, same body) gets the promise of the first;
a model keeps only the snapshots that were used last, and all whose requests are not answered yet.
Owned by the event loop's thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.wire import CreateSamplingSessionRequest
from crucible_tinkex.server.operations import (
    CancelSample,
    DropSnapshot,
    SamplerSource,
    refused,
)
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.promises import Promises, digest
from crucible_tinkex.server.store.store import Store

MAX_SEEN = 20_000


@dataclass(slots=True)
class Sampler:
    """`model_id` is whose snapshot this is, or empty; `open` counts what is under way for it."""

    sampler_id: str
    session_id: str
    source: SamplerSource
    model_id: str = ""
    used_s: float = 0.0
    open: int = 0
    seen: OrderedDict[int, tuple[bytes, str]] = field(default_factory=OrderedDict)


class Samplers:
    """`touch` marks a session as alive, or raises if there is none."""

    def __init__(
        self,
        promises: Promises,
        store: Store,
        touch: Callable[[str], Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._promises = promises
        self._store = store
        self._touch = touch
        self._clock = clock
        self._samplers: dict[str, Sampler] = {}
        self._snapshots: dict[str, dict[str, None]] = {}
        """By model, in the order of their last use."""

    def __getitem__(self, sampler_id: str) -> Sampler:
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            raise refused(
                f"there is no sampling session {sampler_id}, or it was freed: a model keeps the "
                f"last {self._promises.limits.max_snapshots} unnamed weights that are used; give "
                "the weights a name to keep them",
                404,
            )
        return sampler

    # --- they come and go ----------------------------------------------------------------------

    def create(self, request: CreateSamplingSessionRequest) -> str:
        checks.base_model(request.base_model, self._promises.engine.base)
        source = self.saved(request.model_path)
        return self._add(request.session_id, request.sampling_session_seq_id, source).sampler_id

    def _add(self, session_id: str, number: int, source: SamplerSource) -> Sampler:
        """The same number gets the same one, or is refused if the source is another."""
        self._touch(session_id)
        sampler_id = _sampler_id(session_id, number)
        sampler = Sampler(sampler_id, session_id, source)
        sampler = self._samplers.setdefault(sampler_id, sampler)
        if sampler.source != source:
            raise refused(f"sampling_session_seq_id {number} was used by another request")
        return sampler

    def expect(self, session_id: str, number: int, model_id: str) -> str:
        """The sampling session of a snapshot that is on its way; `settle` says that it came."""
        source = SamplerSource(snapshot_id=_sampler_id(session_id, number))
        sampler = self._add(session_id, number, source)
        sampler.model_id = model_id
        self._use(sampler)
        return sampler.sampler_id

    def settle(self, session_id: str, number: int) -> None:
        """The snapshot came, or will not."""
        self._settle(_sampler_id(session_id, number))

    def _use(self, sampler: Sampler) -> None:
        """One thing more is under way for it."""
        sampler.open += 1
        sampler.used_s = self._clock()
        if sampler.model_id:
            own = self._snapshots.setdefault(sampler.model_id, {})
            own.pop(sampler.sampler_id, None)
            own[sampler.sampler_id] = None

    def _settle(self, sampler_id: str) -> None:
        """One thing less is. Free what its model need not keep."""
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            return
        sampler.open -= 1
        own = list(self._snapshots.get(sampler.model_id, ()))
        for other in own[: -self._promises.limits.max_snapshots]:
            self._free(self._samplers[other])

    def free_idle(self) -> None:
        """Free the snapshots that nobody has used for long."""
        limit = self._clock() - self._promises.limits.snapshot_idle_s
        for sampler in list(self._samplers.values()):
            if sampler.model_id and sampler.used_s < limit:
                self._free(sampler)

    def _free(self, sampler: Sampler) -> None:
        if sampler.open == 0:
            self._drop(sampler)

    def drop_session(self, session_id: str) -> None:
        for sampler in [s for s in self._samplers.values() if s.session_id == session_id]:
            self._drop(sampler)

    def _drop(self, sampler: Sampler) -> None:
        del self._samplers[sampler.sampler_id]
        if sampler.model_id:
            own = self._snapshots[sampler.model_id]
            del own[sampler.sampler_id]
            if not own:
                del self._snapshots[sampler.model_id]
        for _, request_id in sampler.seen.values():
            self.cancel(request_id)
        if sampler.source.snapshot_id is not None:
            self._tell(DropSnapshot(sampler.source.snapshot_id, sampler.session_id))

    def saved(self, path: str | None) -> SamplerSource:
        """A checkpoint's weights, or the base's."""
        if path is None:
            return SamplerSource()
        parsed = TinkerPath.parse(path)
        checks.base_model(self._store.info(parsed).base_model, self._promises.engine.base)
        return SamplerSource(path=parsed)

    # --- requests ------------------------------------------------------------------------------

    def sample(self, request: checks.SampleRequest, body: bytes) -> str:
        if request.sampling_session_id is None:
            checks.base_model(request.base_model, self._promises.engine.base)
            return self._submit(request, self.saved(request.model_path), len(body), None)
        sampler = self[request.sampling_session_id]
        self._touch(sampler.session_id)
        if request.seq_id is None:
            return self._submit(request, sampler.source, len(body), sampler)
        key = digest(body)
        known = sampler.seen.get(request.seq_id)
        if known is not None:
            if known[0] != key:
                raise refused(f"seq_id {request.seq_id} was used by another request")
            return known[1]
        request_id = self._submit(request, sampler.source, len(body), sampler)
        sampler.seen[request.seq_id] = (key, request_id)
        if len(sampler.seen) > MAX_SEEN:
            sampler.seen.popitem(last=False)
        return request_id

    def _submit(
        self,
        request: checks.SampleRequest,
        source: SamplerSource,
        size_bytes: int,
        sampler: Sampler | None,
    ) -> str:
        operation = checks.sample(request, source, self._promises.engine.base)
        self._promises.check_room(size_bytes)
        request_id = self._promises.create(size_bytes)
        if sampler is None:
            return self._promises.submit(replace(operation, ticket=request_id), request_id)
        self._use(sampler)
        return self._promises.submit(
            replace(operation, ticket=request_id, owner=sampler.session_id),
            request_id,
            lambda outcome: self._settle(sampler.sampler_id),
        )

    def cancel(self, request_id: str) -> None:
        """Drop a sample that has not started; anything else goes on."""
        if self._promises.is_open(request_id):
            self._tell(CancelSample(request_id))

    def _tell(self, operation: CancelSample | DropSnapshot) -> None:
        self._promises.engine.submit(operation, lambda outcome: None)


def _sampler_id(session_id: str, number: int) -> str:
    return f"{session_id}:sample:{number}"
