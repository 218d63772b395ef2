"""Sessions: made, kept alive, finished, and with them what they hold.

Guarantee: finishing a session frees all its models and sampling sessions. Owned by the event loop's
thread. No torch, no HTTP. What is asked of a model is in `models`, and of a sampling session in
`samplers`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from crucible_tinkex.server.operations import Engine, gone
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.models import Models
from crucible_tinkex.server.sessions.promises import Promises
from crucible_tinkex.server.sessions.samplers import Samplers
from crucible_tinkex.server.store.store import Store

_SWEEP_S = 5.0


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
        self.promises = Promises(engine, self.limits, clock=clock)
        self.samplers = Samplers(self.promises, store, self._touch, clock=clock)
        self.models = Models(self.promises, store, self.samplers, self._touch)
        self._clock = clock
        self._sessions: dict[str, float] = {}
        """When they were heard of last."""
        self._swept_s = clock()

    def create_session(self) -> str:
        if len(self._sessions) >= self.limits.max_sessions:
            self._sweep()
        if len(self._sessions) >= self.limits.max_sessions:
            raise self.promises.busy(f"it has {len(self._sessions)} sessions")
        session_id = str(uuid.uuid4())
        self._sessions[session_id] = self._clock()
        return session_id

    def beat(self, session_id: str) -> None:
        """The session is alive. Raises with 410 if there is none, or no more."""
        self._touch(session_id)
        if self._clock() - self._swept_s >= _SWEEP_S:
            self._sweep()

    def _touch(self, session_id: str) -> None:
        if session_id not in self._sessions:
            raise gone(f"session {session_id} is finished, or of an earlier server")
        self._sessions[session_id] = self._clock()

    def finish_session(self, session_id: str) -> None:
        """Free the session's models and snapshots; finishing twice is no error."""
        self._sessions.pop(session_id, None)
        self.models.drop_session(session_id)
        self.samplers.drop_session(session_id)

    def _sweep(self) -> None:
        """Finish and free what nobody uses, and delete expired checkpoints."""
        now = self._swept_s = self._clock()
        for session_id, heard_s in list(self._sessions.items()):
            if heard_s < now - self.limits.session_idle_s:
                self.finish_session(session_id)
        self.samplers.free_idle()
        asyncio.get_running_loop().run_in_executor(None, self.store.purge)
