"""What a session holds in memory: models and sampling sessions, by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from crucible_tinkex.server.operations import LoraSpec
from crucible_tinkex.server.sessions.ordering import Sequence
from crucible_tinkex.server.sessions.session_records import SessionRecord


@dataclass(slots=True)
class Model:
    """`waiting` holds what was asked of a model that has no place yet; None: it has one."""

    model_id: str
    session_id: str
    spec: LoraSpec
    created_by: str = ""
    sequence: Sequence = field(default_factory=Sequence)
    waiting: list[Callable[[], None]] | None = None

    def when_placed(self, send: Callable[[], None]) -> None:
        """Call `send` now, or when the model gets a place."""
        if self.waiting is None:
            send()
        else:
            self.waiting.append(send)


@dataclass(slots=True)
class Session:
    session_id: str
    touched_s: float
    record: SessionRecord
    models: dict[int, tuple[bytes, str, Model]] = field(default_factory=dict)
    samplers: dict[int, str] = field(default_factory=dict)
