"""The one telemetry record, and the narrow interface of everything that takes records.

An `Event` is immutable and complete in itself: who measured what, when, at which step of which
trial. `(writer, seq)` identifies it: a writer never uses a `seq` twice, so an event that is
delivered twice is stored once. `sweep_id` is the same in every run of a sweep, `run_id` names the
run. Kinds follow the seed's catalogue; an `example` is one row behind an evaluation: `name` is the
example's id, `value` its mean nll in nats per completion token, `extra` has `tokens`, `correct`
(true, false or null) and `text` (what was generated, or null).
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Protocol

KINDS = (
    "session_start",
    "session_end",
    "training_step",
    "optimizer_step",
    "evaluation",
    "example",
    "phase",
    "checkpoint_saved",
    "request",
    "queue_state",
    "sample",
    "stage",
    "trial_state",
    "sweep_state",
)


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement or state change.

    `time_us` is UTC microseconds since the epoch, for display only; order within a writer is
    `seq`. `name` is the metric's tag (`train/nll`) or the event's subject; `value` is None where
    there is no number. `extra` is a JSON object as text.
    """

    kind: str
    sweep_id: str
    experiment_id: str
    writer: str
    seq: int
    time_us: int
    trial_id: str = ""
    attempt: int = 0
    step: int = 0
    epoch: int = 0
    name: str = ""
    value: float | None = None
    extra: str = "{}"
    run_id: str = ""

    @property
    def event_id(self) -> str:
        return f"{self.writer}:{self.seq}"

    def __reduce__(self) -> tuple[Any, ...]:
        """As its values: pickling field by field costs several times as much."""
        return Event, _values(self)


_values = attrgetter(*(f.name for f in fields(Event)))


class EventSink(Protocol):
    """Takes events; `flush` returns only when all taken so far are durable."""

    def emit(self, kind: str, **fields: Any) -> None: ...

    async def flush(self) -> None: ...


@dataclass
class EventWriter:
    """Stamps events with identity, sequence number and time. One per process and purpose."""

    sweep_id: str
    experiment_id: str
    run_id: str = ""
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    _seq: int = 0

    def event(self, kind: str, *, extra: dict[str, Any] | None = None, **fields: Any) -> Event:
        if kind not in KINDS:
            raise ValueError(f"unknown event kind {kind!r}; legal: {', '.join(KINDS)}")
        self._seq += 1
        return Event(
            kind=kind,
            sweep_id=self.sweep_id,
            experiment_id=self.experiment_id,
            run_id=self.run_id,
            writer=self.writer,
            seq=self._seq,
            time_us=time.time_ns() // 1000,
            extra=json.dumps(extra, sort_keys=True, default=str) if extra else "{}",
            **fields,
        )
