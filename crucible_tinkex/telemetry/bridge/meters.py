"""Metrics that OpenTelemetry gets of events; `experiment_id` is on all of them.

| metric | of |
|---|---|
| `crucible.events` | all events, by `event` |
| `crucible.operation.duration` (s) | operations and calls over HTTP, by `operation`, `error_type` |
| `crucible.steps` | optimizer steps |
| `crucible.step.duration` (s) | from a step's first pass, or the step before, to its end |
| `crucible.tokens` | tokens of passes and samples, by `operation` |
| `crucible.evaluation` | held-out metrics of a session, by `metric`; not of a sweep's many trials |
| `crucible.http.retries` | calls over HTTP that were sent again, by `operation` |
| `crucible.http.wait` (s) | back-off that the service asked for, by `operation` |
| `crucible.queue.pauses` | times that the service let a session wait, by `state` |
| `crucible.sessions` | sessions that are open |
| `crucible.checkpoints` | checkpoints saved |
| `crucible.checkpoint.bytes` (By) | saved by attempts that ended, where the service lists it |

The trial is no attribute of a metric: thousands of series would be of no use. Spans have it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider

from crucible_tinkex.client.http.watch import ACTIVE
from crucible_tinkex.telemetry.bridge.catalogue import BridgeEvent
from crucible_tinkex.version import VERSION

NAME = "crucible_tinkex"
_MEASURED = ("duration_s", "crucible_timestamp")


@dataclass
class _Steps:
    """The optimizer steps of one session that are under way; times in Unix seconds."""

    first_pass: float | None = None
    begun: deque[float] = field(default_factory=deque)
    ended: float = 0.0

    def passes(self, now: float) -> None:
        self.first_pass = now if self.first_pass is None else self.first_pass

    def begins(self, now: float) -> None:
        self.begun.append(now if self.first_pass is None else self.first_pass)
        self.first_pass = None

    def ends(self, now: float) -> float | None:
        """Its seconds; None where its begin was not told."""
        begun = self.begun.popleft() if self.begun else None
        before, self.ended = self.ended, now
        return None if begun is None else now - max(begun, before)


class Meters:
    """See the module."""

    def __init__(self, provider: MeterProvider | None = None) -> None:
        meter = metrics.get_meter(NAME, VERSION, provider)
        self._events = meter.create_counter("crucible.events")
        self._durations = meter.create_histogram("crucible.operation.duration", unit="s")
        self._steps = meter.create_counter("crucible.steps")
        self._step_seconds = meter.create_histogram("crucible.step.duration", unit="s")
        self._tokens = meter.create_counter("crucible.tokens")
        self._evaluation = meter.create_gauge("crucible.evaluation")
        self._retries = meter.create_counter("crucible.http.retries")
        self._waits = meter.create_counter("crucible.http.wait", unit="s")
        self._pauses = meter.create_counter("crucible.queue.pauses")
        self._open = meter.create_up_down_counter("crucible.sessions")
        self._checkpoints = meter.create_counter("crucible.checkpoints")
        self._bytes = meter.create_counter("crucible.checkpoint.bytes", unit="By")
        self._sessions: dict[tuple[str, str], _Steps] = {}

    def count(self, event: BridgeEvent) -> None:
        about = {"experiment_id": experiment_of(event)}
        self._events.add(1, {"event": event.name, **about})
        if (operation := ended(event)) is not None:
            self._ended(event, operation, about)
        match event.name:
            case "session_start":
                self._open.add(1, about)
                self._sessions[session_of(event)] = _Steps()
            case "session_end":
                if self._sessions.pop(session_of(event), None) is not None:
                    self._open.add(-1, about)
                self._bytes.add(event.measurements.get("checkpoint_bytes", 0), about)
            case "forward_backward_start" | "optim_step_start" | "optim_step_exception":
                self._step(event, about)
            case "optim_step_stop":
                self._steps.add(1, about)
                self._step(event, about)
            case "evaluation_complete" if "trial_id" not in event.metadata:
                for name, value in numbers(event.measurements).items():
                    self._evaluation.set(value, {"metric": name, **about})
            case "queue_state" if event.metadata["state"] != ACTIVE.state:
                self._pauses.add(1, {"state": event.metadata["state"], **about})
            case "checkpoint_saved":
                self._checkpoints.add(1, about)

    def _ended(self, event: BridgeEvent, operation: str, about: Mapping[str, str]) -> None:
        of = {"operation": operation, **about}
        failed = {k: str(event.metadata[k]) for k in ("error_type",) if k in event.metadata}
        self._durations.record(float(event.measurements["duration_s"]), {**of, **failed})
        if tokens := event.measurements.get("tokens"):
            self._tokens.add(tokens, of)
        if operation == "http_request":
            of = {"operation": str(event.metadata["operation"]), **about}
            if again := event.measurements["attempts"] - 1:
                self._retries.add(max(again, 0), of)
            if waited := event.measurements["queued_s"]:
                self._waits.add(waited, of)

    def _step(self, event: BridgeEvent, about: Mapping[str, str]) -> None:
        if (steps := self._sessions.get(session_of(event))) is None:
            return
        now = event.measurements["crucible_timestamp"] / 1000
        if event.name == "forward_backward_start":
            steps.passes(now)
        elif event.name == "optim_step_start":
            steps.begins(now)
        else:
            seconds = steps.ends(now)
            if seconds is not None and event.name == "optim_step_stop":
                self._step_seconds.record(seconds, about)


def experiment_of(event: BridgeEvent) -> str:
    return str(event.metadata["experiment_id"])


def session_of(event: BridgeEvent) -> tuple[str, str]:
    """Experiment and trial."""
    return experiment_of(event), str(event.metadata.get("trial_id", ""))


def ended(event: BridgeEvent) -> str | None:
    """The operation that this is the end of."""
    operation = event.name.removesuffix("_stop").removesuffix("_exception")
    return operation if operation != event.name and "duration_s" in event.measurements else None


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What was measured, without the time of it."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _MEASURED
    }
