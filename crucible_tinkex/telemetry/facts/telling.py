"""Handlers that hear of a storage's facts as they happen in this process.

One bridge per storage folder and process, made when somebody attaches to it. A handler is called in
the thread that does the work, after it is durable; one that raises is detached (`Bridge`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crucible_tinkex.telemetry.facts.fact import Fact

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.bridge import Bridge, Handler

_bridges: dict[Path, Bridge] = {}


def bridge_of(storage: str | Path) -> Bridge:
    """That of a storage folder; the same for everybody in this process."""
    from crucible_tinkex.telemetry.bridge import Bridge

    return _bridges.setdefault(_key(storage), Bridge())


def tell(storage: str | Path, *facts: Fact) -> None:
    """To the handlers of a storage, if it has any."""
    bridge = _bridges.get(_key(storage)) if _bridges else None
    if bridge is None:
        return
    for fact in facts:
        where = {"trial_id": fact.trial_id} if fact.trial_id else {}
        about = {**fact.about, **where, "subject": fact.subject, "experiment_id": fact.sweep}
        bridge.execute(fact.name, fact.numbers, **about)


def handler_of(storage: str | Path) -> Handler | None:
    """What hands events of sessions on to a storage's handlers; None while it has none."""
    bridge = _bridges.get(_key(storage))
    return bridge.forward if bridge is not None and bridge.handlers() else None


def _key(storage: str | Path) -> Path:
    return Path(storage).expanduser().resolve()
