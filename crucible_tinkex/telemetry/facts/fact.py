"""One fact about a model, a checkpoint, an artifact or a dataset, and the handlers that hear of it.

There is one bridge per storage folder and process, made when somebody attaches to it. A handler is
called in the thread that does the work, after it is durable; one that raises is detached
(`Bridge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.bridge import Bridge, Handler

_bridges: dict[Path, Bridge] = {}


@dataclass(frozen=True)
class Fact:
    """`name` is in the bridge's catalogue, `time` in Unix seconds, `subject` what it is about: a
    model's `NAME:VERSION`, a checkpoint's path, a folder, a dataset's fingerprint."""

    name: str
    time: float
    subject: str
    sweep: str = ""
    trial_id: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""


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
