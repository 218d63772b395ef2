"""The heartbeat that keeps a service session alive, and finds out that it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable

from crucible_tinkex.client.http.encoding import nothing
from crucible_tinkex.client.http.pace import Lane
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.transport import Call, Transport
from crucible_tinkex.errors import ServiceError, SessionLostError
from crucible_tinkex.protocol.wire import SessionRequest

_log = logging.getLogger(__name__)


async def beat(
    session_id: str,
    transport: Transport,
    settings: ClientSettings,
    *,
    on_lost: Callable[[SessionLostError], None],
) -> None:
    """Runs until the session ends. A failed one is only warned about: work goes on."""
    clock = settings.clock
    call = Call(
        "session_heartbeat",
        body=SessionRequest(session_id=session_id).body(),
        lane=Lane.VITAL,
        total_s=settings.heartbeat_s,
    )
    alive = clock.monotonic()
    warned = False
    while True:
        await clock.sleep(settings.heartbeat_s)
        try:
            await transport.call(call, nothing)
            alive, warned = clock.monotonic(), False
        except SessionLostError as error:
            on_lost(error)
            return
        except ServiceError as error:
            silent_s = clock.monotonic() - alive
            if silent_s > settings.heartbeat_warning_s and not warned:
                _log.warning("no heartbeat for %.0f s: %s", silent_s, error)
                warned = True
