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
    planned: int = 0
    """How many trials there will be in all, or at most."""
    steps_each: int = 0
    """Steps of a trial that has not been asked for yet."""
    faults: Sequence[str] = ()
    """Views (TensorBoard) that are behind."""
    started: float = field(default_factory=time.monotonic)
    eval_every: int = 0
    slots: int = 1
    """Sessions at the same time."""
    step_s: float = 0.0
    """A session's seconds per step, as measured last; 0 while unknown."""
    eval_s: float = 0.0
    training_since: float | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def training_s(self) -> float:
        since = self.training_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def total_trials(self) -> int:
        return max(self.planned, len(self.trials))

    @property
    def steps_done(self) -> int:
        """Steps of trials that ended early count as the rest of what they were asked for."""
        return sum(t.record.total_steps if t.ended else t.step for t in self.trials)

    @property
    def steps_total(self) -> int:
        to_come = self.total_trials - len(self.trials)
        return sum(t.record.total_steps for t in self.trials) + to_come * self.steps_each

    @property
    def eta_s(self) -> float | None:
        """Seconds left: what sessions still have to step and to evaluate, shared by the slots."""
        if not self.step_s or not self.trials:
            return None
        to_come = self.total_trials - len(self.trials)
        open_trials = [t for t in self.trials if not t.ended]
        steps = sum(t.record.total_steps - t.step for t in open_trials) + to_come * self.steps_each
        evaluations = sum(self._evaluations_left(t.record) for t in open_trials)
        evaluations += to_come * self._evaluations(self.steps_each)
        busy = max(1, min(self.slots, len(open_trials) + to_come))
        return (steps * self.step_s + evaluations * self.eval_s) / busy

    def _evaluations_left(self, trial: TrialRecord) -> int:
        return max(0, self._evaluations(trial.total_steps) - len(trial.results))

    def _evaluations(self, steps: int) -> int:
        """How often a trial of so many steps is evaluated: the last step always is."""
        return -(-steps // self.eval_every) if self.eval_every and steps else 1

    def measure(self) -> None:
        """Take the speeds from what the trials report now."""
        for name in ("step_s", "eval_s"):
            found = [t.metric(f"perf/{name}") for t in self.trials if t.live]
            values = [v for v in found if v is not None]
            if values:
                setattr(self, name, sum(values) / len(values))


Observer = Callable[[SweepView], None]


def ignore(view: SweepView) -> None:
    """The observer of nobody."""
