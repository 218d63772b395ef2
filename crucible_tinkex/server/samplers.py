"""Sampling sessions: whose weights they use, their requests, and who has finished.

Guarantees: a repeat of a sampling request (same seq_id, same body) gets the promise of the first;
`completions` tells a poller of every finished request at least once, until it acknowledges by its
cursor. Owned by the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import checks
from crucible_tinkex.server.bodies import RetrieveFuturesRequest, SampleRequest
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.dispatch import Dispatch, Report, digest, ignore
from crucible_tinkex.server.operations import CancelSample, DropSnapshot, Outcome, SamplerSource
from crucible_tinkex.server.store import Store

CLONE_SPAN = 1_000_000_000
"""Clone c of a client numbers its requests from c * CLONE_SPAN."""
MAX_SEEN = 20_000
MAX_COMPLETIONS = 20_000


@dataclass(slots=True)
class Completions:
    """What finished, by a running number; the oldest go when nobody asks."""

    finished: deque[tuple[int, str, bool]] = field(
        default_factory=lambda: deque(maxlen=MAX_COMPLETIONS)
    )
    cursor: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, request_id: str, *, failed: bool) -> None:
        self.cursor += 1
        self.finished.append((self.cursor, request_id, failed))
        self.news.set()

    def after(self, cursor: int) -> list[tuple[int, str, bool]]:
        while self.finished and self.finished[0][0] <= cursor:
            self.finished.popleft()
        return list(self.finished)


@dataclass(slots=True)
class Sampler:
    sampler_id: str
    session_id: str
    source: SamplerSource
    seen: OrderedDict[int, tuple[bytes, str]] = field(default_factory=OrderedDict)
    clones: int = 0
    completions: dict[int, Completions] = field(default_factory=dict)

    def completed(self, clone: int) -> Completions:
        return self.completions.setdefault(clone, Completions())


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
        for completions in sampler.completions.values():
            completions.news.set()
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

    def join(self, sampler_id: str) -> int:
        """A clone's number; the client that made the session has 0."""
        sampler = self[sampler_id]
        sampler.clones += 1
        return sampler.clones

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
        clone = (request.seq_id or 0) // CLONE_SPAN
        follow: Report = ignore
        if sampler is not None:
            timeline = self._dispatch.timeline
            follow = timeline.begin(sampler.session_id, sampler.sampler_id, operation)

        def finished(outcome: Outcome) -> None:
            self._cancellable.pop(request_id, None)
            follow(outcome)
            if sampler is not None:
                failed = isinstance(outcome, CrucibleError)
                sampler.completed(clone).add(request_id, failed=failed)

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

    async def completions(
        self, request: RetrieveFuturesRequest, timeout_s: float
    ) -> dict[str, Any]:
        """What has finished since the poller's cursor, as soon as there is anything."""
        sampler = self[request.target.sampling_session_id]
        self._touch(sampler.session_id)
        queue = sampler.completed(request.target.cloned_sampler_id)
        if not queue.after(request.prev_cursor):
            queue.news.clear()
            wait_s = timeout_s if request.timeout is None else min(request.timeout, timeout_s)
            if wait_s > 0:
                waiting = asyncio.ensure_future(queue.news.wait())
                await asyncio.wait((waiting,), timeout=wait_s)
                waiting.cancel()
        found = queue.after(request.prev_cursor)
        states = [
            {"state": "failed" if failed else "finished", "request_id": request_id}
            for _, request_id, failed in found
        ]
        return {"completions": states, "cursor": max(queue.cursor, request.prev_cursor)}
