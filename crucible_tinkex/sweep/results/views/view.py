"""What a live display shows of a running sweep; made by the controller, read by anybody."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from crucible_tinkex.registry import PENDING, RUNNING, TERMINAL, TrialRecord
from crucible_tinkex.training.attempt.reporter import EVALUATING

log = logging.getLogger(__name__)

TELLING_SHARE = 0.05
"""Of an evaluation: before, its requests may still wait for those of others."""
SMOOTHING = 0.1
"""How much of a new measurement counts at a refresh, of which there are two a second."""


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
    def attempt(self) -> int:
        return max(self.record.attempt, int(self.live.get("attempt", 0)))

    @property
    def state(self) -> str:
        """That of the record, which learns that an attempt began when the next thing happens."""
        began = self.record.state == PENDING and self.attempt > self.record.attempt
        return RUNNING if began else self.record.state

    @property
    def step(self) -> int:
        return max(self.record.step, int(self.live.get("step", 0)))

    @property
    def waiting(self) -> Mapping[str, Any] | None:
        """What the service keeps it waiting for: `state`, `reason`, `resume_at`."""
        return self.live.get("waiting") if self.state == RUNNING else None

    @property
    def phase(self) -> Mapping[str, Any]:
        """`phase` (training, evaluating), and how far it is: `done`, `of`, after `s` seconds."""
        return self.live.get("phase") or {} if self.state == RUNNING else {}

    @property
    def evaluated(self) -> float:
        """How much of an evaluation in progress is done: 0 to 1."""
        phase = self.phase
        is_evaluating = phase.get("phase") == EVALUATING and phase["of"]
        return phase["done"] / phase["of"] if is_evaluating else 0.0

    @property
    def expected_eval_s(self) -> float | None:
        """Seconds of the evaluation in progress, by its pace so far; None: too early to say."""
        share = self.evaluated
        return self.phase["s"] / share if TELLING_SHARE <= share < 1 else None

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
    evaluates: bool = True
    """Whether there are held-out rows."""
    training_since: float | None = None
    _evaluated: bool = False
    """Whether `eval_s` is of whole evaluations, not of the pace of one in progress."""

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
        """Seconds left: what sessions still have to step and to evaluate, shared by the slots, but
        never less than one of them needs by itself. None while it is not known how long a step
        takes; `evaluations_unknown` says whether evaluations are missing in it."""
        to_come = self.total_trials - len(self.trials)
        left = [self._left(t) for t in self.trials if not t.ended]
        left += [(self.steps_each, float(self._evaluations(self.steps_each)))] * to_come
        if not self.trials or (not self.step_s and any(steps for steps, _ in left)):
            return None
        seconds = [steps * self.step_s + evals * self.eval_s for steps, evals in left]
        busy = max(1, min(self.slots, len(seconds)))
        return max(sum(seconds) / busy, max(seconds, default=0.0))

    @property
    def evaluations_unknown(self) -> bool:
        """Whether trials will be evaluated, and none was yet."""
        return self.evaluates and not self.eval_s

    def _left(self, trial: TrialView) -> tuple[int, float]:
        """Steps, and evaluations, that a trial has still to do."""
        total, done = trial.record.total_steps, len(trial.record.results) + trial.evaluated
        return max(0, total - trial.step), max(0.0, self._evaluations(total) - done)

    def _evaluations(self, steps: int) -> int:
        """How often a trial of so many steps is evaluated: the last step always is."""
        if not self.evaluates:
            return 0
        return -(-steps // self.eval_every) if self.eval_every and steps else 1

    def measure(self, live: Sequence[TrialView] | None = None) -> None:
        """Take the speeds from what the trials report now. `live`: those that report anything, so
        that a long sweep need not be searched for them."""
        live = [t for t in self.trials if t.live] if live is None else live
        steps = [v for t in live if (v := t.metric("perf/step_s")) is not None]
        evaluations = [v for t in live if (v := t.metric("perf/eval_s")) is not None]
        if not evaluations and not self._evaluated:
            evaluations = [v for t in live if (v := t.expected_eval_s) is not None]
        self._evaluated = self._evaluated or any(t.metric("perf/eval_s") for t in live)
        self.step_s = _smoothed(self.step_s, steps)
        self.eval_s = _smoothed(self.eval_s, evaluations)


def _smoothed(before: float, values: Sequence[float]) -> float:
    """Follows the mean of `values` slowly, so that an estimate does not jump."""
    if not values or not before:
        return fmean(values) if values else before
    return before + SMOOTHING * (fmean(values) - before)


Observer = Callable[[SweepView], None]


def ignore(view: SweepView) -> None:
    """The observer of nobody."""


def harmless(observer: Observer) -> Observer:
    """Calls the observer until it raises; that is logged, and the sweep goes on unobserved."""
    is_well = True

    def observe(view: SweepView) -> None:
        nonlocal is_well
        if not is_well:
            return
        try:
            observer(view)
        except (Exception, SystemExit):
            is_well = False
            log.exception("the observer of the sweep raised and is not called again")

    return observe
