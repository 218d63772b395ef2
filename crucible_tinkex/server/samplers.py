"""Sampling sessions: whose weights they use, and their requests.

Guarantee: a repeat of a sampling request (same seq_id, same body) gets the promise of the first.
Owned by the event loop's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import checks
from crucible_tinkex.server.bodies import SampleRequest
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.dispatch import Dispatch, digest, ignore
from crucible_tinkex.server.operations import CancelSample, DropSnapshot, Outcome, SamplerSource
from crucible_tinkex.server.store import Store

MAX_SEEN = 20_000


@dataclass(slots=True)
class Sampler:
    sampler_id: str
    session_id: str
    source: SamplerSource
    seen: OrderedDict[int, tuple[bytes, str]] = field(default_factory=OrderedDict)


class Samplers:
    """`touch` marks the session of a sampler as alive, or raises if it is finished."""

    def __init__(self, dispatch: Dispatch, store: Store, touch: Callable[[str], Any]) -> None:
        self._dispatch = dispatch
        self._store = store
        self._touch = touch
        self._samplers: dict[str, Sampler] = {}
        self._tickets = 0
        self._cancellable: dict[str, str] = {}

    def __getitem__(self, sampler_id: str) -> Sampler:
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            raise refused(f"there is no sampling session {sampler_id}", 404)
        return sampler

    def add(self, session_id: str, number: int, source: SamplerSource) -> str:
        sampler_id = f"{session_id}:sample:{number}"
        known = self._samplers.get(sampler_id)
        if known is None:
            self._samplers[sampler_id] = Sampler(sampler_id, session_id, source)
        elif known.source != source:
            raise refused(f"sampling_session_seq_id {number} was used by another request")
        return sampler_id

    def drop(self, sampler_id: str) -> None:
        sampler = self._samplers.pop(sampler_id, None)
        if sampler is None:
            return
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

        def finished(outcome: Outcome) -> None:
            self._cancellable.pop(request_id, None)

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
