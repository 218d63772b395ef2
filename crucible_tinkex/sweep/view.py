"""What a live display shows of a running sweep; made by the controller, read by anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.registry import RUNNING, TERMINAL, TrialRecord


@dataclass(frozen=True)
class TrialView:
    """A trial as a person sees it now."""

    record: TrialRecord
    live: Mapping[str, Any]
    """Newest telemetry: `step`, the last value of every metric, what it waits for."""

    @property
    def ended(self) -> bool:
        return self.record.state in TERMINAL

    @property
    def step(self) -> int:
        return max(self.record.step, int(self.live.get("step", 0)))

    @property
    def waiting(self) -> Mapping[str, Any] | None:
        """What the service keeps it waiting for: `state`, `reason`, `resume_at`."""
        return self.live.get("waiting") if self.record.state == RUNNING else None

    @property
    def phase(self) -> Mapping[str, Any]:
        """`phase` (training, evaluating), and how far an evaluation is: `done`, `of`."""
        return self.live.get("phase") or {} if self.record.state == RUNNING else {}

    def metric(self, name: str) -> float | None:
        """The newest value: telemetry first, then what the registry remembers of earlier runs."""
        newest = {**self.record.metrics, **self.live.get("metrics", {})}
        return newest.get(name)


@dataclass
class SweepView:
    """The whole sweep, as it was at the last refresh."""

    name: str
    phase: str = "starting"
    trials: Sequence[TrialView] = ()
    planned: int | None = None
    """How many trials there will be; None if the search decides on the way."""
    steps_each: int = 0
    """Steps of a trial that has not been asked for yet."""
    faults: Sequence[str] = ()
    """Views (TensorBoard) that are behind."""
    started: float = field(default_factory=time.monotonic)
    training_since: float | None = None
    steps_at_start: int | None = None
    """Steps that an earlier run had done, for an honest estimate of the time left."""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def training_s(self) -> float:
        since = self.training_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def total_trials(self) -> int:
        return max(self.planned or 0, len(self.trials))

    @property
    def steps_done(self) -> int:
        """Steps of trials that ended early count as the rest of what they were asked for."""
        return sum(t.record.total_steps if t.ended else t.step for t in self.trials)

    @property
    def steps_total(self) -> int:
        to_come = self.total_trials - len(self.trials)
        return sum(t.record.total_steps for t in self.trials) + to_come * self.steps_each


Observer = Callable[[SweepView], None]


def ignore(view: SweepView) -> None:
    """The observer of nobody."""
