"""Handlers of the user, and the events that they are given.

One bridge per experiment (the original had one for the whole process, so the second experiment
could not attach and the first got the events of all). Handlers are called in the thread of the
session, in order, and must be quick. One that raises is detached, named in `faults`, and the others
hear of it as `handler_detached`; training never stops for a handler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crucible_tinkex.client.http.watch import Observer, QueueState, RequestRecord
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.telemetry.bridge.catalogue import (
    CATALOGUE,
    BridgeEvent,
    Handler,
    check_event,
)
from crucible_tinkex.version import VERSION

log = logging.getLogger(__name__)
ADAPTER = "tinkex"


class Bridge(Observer):
    """See the module. As an `Observer` it tells of calls over HTTP and of waits."""

    def __init__(
        self,
        experiment_id: str = "",
        *,
        wall: Callable[[], float] = time.time,
        **metadata: Any,
    ) -> None:
        """`metadata` goes with every event."""
        self._fixed = {
            **metadata,
            "experiment_id": experiment_id,
            "adapter": ADAPTER,
            "crucible_version": VERSION,
        }
        self._wall = wall
        self._handlers: dict[str, tuple[frozenset[str], Handler]] = {}
        self.faults: dict[str, str] = {}
        """Handlers that raised and were detached, with what they raised."""

    def attach(
        self, handler_id: str, handler: Handler, events: Sequence[str] | None = None
    ) -> None:
        """Call `handler` for the named events (None: all). Raises `ConfigError` for an id that is
        taken and for an event that is not in the catalogue."""
        if handler_id in self._handlers:
            raise ConfigError(f"a handler {handler_id!r} is attached; detach it or choose another")
        names = CATALOGUE if events is None else [check_event(name) for name in events]
        self._handlers[handler_id] = (frozenset(names), handler)
        self.faults.pop(handler_id, None)

    def detach(self, handler_id: str) -> bool:
        """Whether it was attached."""
        return self._handlers.pop(handler_id, None) is not None

    def handlers(self) -> list[str]:
        return list(self._handlers)

    def execute(
        self, name: str, measurements: Mapping[str, Any] | None = None, **metadata: Any
    ) -> None:
        """Give an event, enriched, to every handler that asked for it."""
        check_event(name)
        if not self._handlers:
            return
        event = BridgeEvent(
            name,
            {**(measurements or {}), "crucible_timestamp": int(self._wall() * 1000)},
            {**self._fixed, **metadata},
        )
        self.forward(event)

    def forward(self, event: BridgeEvent) -> None:
        """Give an event, also another bridge's, as it is to every handler that asked for it."""
        for handler_id, (names, handler) in list(self._handlers.items()):
            if event.name in names:
                self._call(handler_id, handler, event)

    def _call(self, handler_id: str, handler: Handler, event: BridgeEvent) -> None:
        try:
            handler(event)
        except Exception as error:
            log.exception("telemetry handler %r is detached", handler_id)
            self.detach(handler_id)
            self.faults[handler_id] = f"{type(error).__name__}: {error}"
            self.execute("handler_detached", handler=handler_id, error=self.faults[handler_id])

    # --- of the client -------------------------------------------------------------------------

    def on_request(self, record: RequestRecord) -> None:
        numbers = {
            "duration_s": record.duration_s,
            "queued_s": record.queued_s,
            "attempts": record.attempts,
        }
        about = {"operation": record.operation, "path": record.path, "status": record.status}
        if record.error is None:
            self.execute("http_request_stop", numbers, **about)
        else:
            self.execute("http_request_exception", numbers, **about, error=record.error)

    def on_queue_state(self, state: QueueState) -> None:
        self.execute(
            "queue_state", {"resume_at": state.resume_at}, state=state.state, reason=state.reason
        )
