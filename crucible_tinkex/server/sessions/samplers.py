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
from crucible_tinkex.protocol.wire import SampleRequest
from crucible_tinkex.server.operations import (
    CancelSample,
    DropSnapshot,
    Outcome,
    SamplerSource,
    refused,
)
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.dispatch import Dispatch, digest, ignore
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
    """`touch` marks the session of a sampler as alive, or raises if it is finished."""

    def __init__(
        self,
        dispatch: Dispatch,
        store: Store,
        touch: Callable[[str], Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dispatch = dispatch
        self._store = store
        self._touch = touch
        self._clock = clock
        self._samplers: dict[str, Sampler] = {}
        self._snapshots: dict[str, OrderedDict[str, None]] = {}
        """By model, in the order of their last use."""
        self._freed: OrderedDict[str, None] = OrderedDict()
        self._tickets = 0
        self._cancellable: dict[str, str] = {}

    def __getitem__(self, sampler_id: str) -> Sampler:
        sampler = self._samplers.get(sampler_id)
        if sampler is None and sampler_id in self._freed:
            kept = self._dispatch.limits.max_snapshots
            raise refused(
                f"sampling session {sampler_id} was freed: a model keeps the last {kept} that are "
                "used; give the weights a name to keep them",
                404,
            )
        if sampler is None:
            raise refused(f"there is no sampling session {sampler_id}", 404)
        return sampler

    def add(self, session_id: str, number: int, source: SamplerSource) -> str:
        sampler_id = sampler_id_of(session_id, number)
        known = self._samplers.get(sampler_id)
        if known is None:
            self._samplers[sampler_id] = Sampler(sampler_id, session_id, source)
        elif known.source != source:
            raise refused(f"sampling_session_seq_id {number} was used by another request")
        return sampler_id

    def expect(self, sampler_id: str, model_id: str) -> None:
        """A snapshot of the model is on its way to this session; `settle` says that it came."""
        sampler = self._samplers[sampler_id]
        sampler.model_id = model_id
        sampler.open += 1
        self._use(sampler)

    def settle(self, sampler_id: str) -> None:
        """One thing less is under way for this session. Free what its model need not keep."""
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            return
        sampler.open -= 1
        own = list(self._snapshots.get(sampler.model_id, ()))
        for other in own[: -self._dispatch.limits.max_snapshots]:
            self._free(other)

    def free_idle(self) -> None:
        """Free the snapshots that nobody has used for long."""
        limit = self._clock() - self._dispatch.limits.snapshot_idle_s
        for sampler in list(self._samplers.values()):
            if sampler.model_id and sampler.used_s < limit:
                self._free(sampler.sampler_id)

    def _use(self, sampler: Sampler) -> None:
        sampler.used_s = self._clock()
        if sampler.model_id:
            own = self._snapshots.setdefault(sampler.model_id, OrderedDict())
            own[sampler.sampler_id] = None
            own.move_to_end(sampler.sampler_id)

    def _free(self, sampler_id: str) -> None:
        if self._samplers[sampler_id].open == 0:
            self.drop(sampler_id)
            self._freed[sampler_id] = None
            if len(self._freed) > MAX_SEEN:
                self._freed.popitem(last=False)

    def drop(self, sampler_id: str) -> None:
        sampler = self._samplers.pop(sampler_id, None)
        if sampler is None:
            return
        own = self._snapshots.get(sampler.model_id, OrderedDict())
        own.pop(sampler_id, None)
        if not own:
            self._snapshots.pop(sampler.model_id, None)
        for _, request_id in sampler.seen.values():
            self.cancel(request_id)
        if sampler.source.snapshot_id is not None:
            drop = DropSnapshot(sampler.source.snapshot_id, sampler.session_id)
            self._dispatch.engine.submit(drop, ignore)

    def saved(self, path: str | None) -> SamplerSource:
        """A checkpoint's weights, or the base's."""
        if path is None:
            return SamplerSource()
        parsed = TinkerPath.parse(path)
        checks.base_model(self._store.info(parsed).base_model, self._dispatch.engine.base)
        return SamplerSource(path=parsed)

    # --- requests ------------------------------------------------------------------------------

    def sample(self, request: SampleRequest, body: bytes) -> str:
        if request.sampling_session_id is None:
            checks.base_model(request.base_model, self._dispatch.engine.base)
            return self._submit(request, self.saved(request.model_path), body, None)
        sampler = self[request.sampling_session_id]
        self._touch(sampler.session_id)
        if request.seq_id is None:
            return self._submit(request, sampler.source, body, sampler)
        key = digest(body)
        known = sampler.seen.get(request.seq_id)
        if known is not None:
            if known[0] != key:
                raise refused(f"seq_id {request.seq_id} was used by another request")
            return known[1]
        request_id = self._submit(request, sampler.source, body, sampler)
        sampler.seen[request.seq_id] = (key, request_id)
        if len(sampler.seen) > MAX_SEEN:
            sampler.seen.popitem(last=False)
        return request_id

    def _submit(
        self, request: SampleRequest, source: SamplerSource, body: bytes, sampler: Sampler | None
    ) -> str:
        operation = checks.sample(request, source, self._dispatch.engine.base)
        self._dispatch.check_room(len(body))
        self._tickets += 1
        ticket = str(self._tickets)

        if sampler is not None:
            sampler.open += 1
            self._use(sampler)

        def finished(outcome: Outcome) -> None:
            self._cancellable.pop(request_id, None)
            if sampler is not None:
                self.settle(sampler.sampler_id)

        owner = "" if sampler is None else sampler.session_id
        operation = replace(operation, ticket=ticket, owner=owner)
        request_id = self._dispatch.submit(operation, len(body), finished)
        self._cancellable[request_id] = ticket
        return request_id

    def cancel(self, request_id: str) -> None:
        """Drop a sample that has not started; anything else goes on."""
        ticket = self._cancellable.get(request_id)
        if ticket is not None:
            self._dispatch.engine.submit(CancelSample(ticket), ignore)


def sampler_id_of(session_id: str, number: int) -> str:
    return f"{session_id}:sample:{number}"
