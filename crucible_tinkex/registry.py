"""The sweep's memory: trials, attempts, checkpoints and results, as a fold over a journal.

The journal (`storage.SegmentLog` of JSON records) is the truth; `SweepState` is what it folds to.
Guarantees: a call returns only after its record is durable; every mutating call may be repeated
without effect (callers resend when an actor dies under them); a write that carries an older attempt
number is refused with `StaleAttemptError`, so two copies of one trial can never both leave results.
A failed journal write always raises: nothing goes on that could not be remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from crucible_tinkex.errors import ConfigError, StaleAttemptError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import Lock, SegmentLog, read_log

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
TERMINAL = (DONE, FAILED)


@dataclass(frozen=True)
class CheckpointRecord:
    """A resumable `state` checkpoint that the service has acknowledged."""

    trial_id: str
    attempt: int
    step: int
    path: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest evaluation at or before `step`."""


@dataclass(frozen=True)
class AttemptGrant:
    """The right to write for a trial, until a newer attempt is granted."""

    attempt: int
    resume: CheckpointRecord | None


@dataclass
class TrialRecord:
    """One configuration with one seed. `values` are the dotted keys that vary."""

    trial_id: str
    index: int
    run_name: str
    values: dict[str, Any]
    seed: int
    total_steps: int
    reference: bool = False
    state: str = PENDING
    attempt: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_step: int = -1
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    error: str | None = None

    @property
    def last_checkpoint(self) -> CheckpointRecord | None:
        return max(self.checkpoints, key=lambda c: (c.step, c.attempt), default=None)


@dataclass
class SweepState:
    """What the journal says. `state` is running, done or interrupted."""

    meta: dict[str, Any] = field(default_factory=dict)
    state: str = PENDING
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    wall_s: float = 0.0
    """Seconds spent by drivers that ended in order."""

    @classmethod
    def read(cls, paths: SweepPaths) -> SweepState:
        """Fold a sweep's journal without owning it; works while it runs."""
        if not paths.journal.is_dir():
            raise ConfigError(f"no sweep at {paths.root}")
        state = cls()
        for record in read_log(paths.journal):
            state.apply(json.loads(record))
        return state

    def apply(self, record: Mapping[str, Any]) -> None:
        """Fold one record; unknown types are ignored, so that newer journals can be read."""
        handler = _HANDLERS.get(record["type"])
        if handler:
            handler(self, record)

    def trial(self, trial_id: str) -> TrialRecord:
        try:
            return self.trials[trial_id]
        except KeyError:
            raise ConfigError(f"no trial {trial_id!r} in this sweep") from None

    def _created(self, record: Mapping[str, Any]) -> None:
        self.meta = dict(record["meta"])

    def _trial_added(self, record: Mapping[str, Any]) -> None:
        trial = TrialRecord(**record["trial"])
        self.trials.setdefault(trial.trial_id, trial)

    def _attempt(self, record: Mapping[str, Any]) -> None:
        trial = self.trials[record["trial_id"]]
        trial.attempt = record["attempt"]
        trial.state, trial.error = RUNNING, None
        resume = trial.last_checkpoint
        trial.step = resume.step if resume else 0

    def _checkpoint(self, record: Mapping[str, Any]) -> None:
        checkpoint = CheckpointRecord(**record["checkpoint"])
        trial = self.trials[checkpoint.trial_id]
        trial.checkpoints.append(checkpoint)
        trial.step = max(trial.step, checkpoint.step)

    def _result(self, record: Mapping[str, Any]) -> None:
        trial = self.trials[record["trial_id"]]
        trial.step = max(trial.step, record["step"])
        trial.metrics, trial.metrics_step = dict(record["metrics"]), record["step"]

    def _finished(self, record: Mapping[str, Any]) -> None:
        trial = self.trials[record["trial_id"]]
        trial.state, trial.error = record["state"], record["error"]

    def _sweep(self, record: Mapping[str, Any]) -> None:
        self.state = record["state"]
        self.wall_s += record.get("wall_s", 0.0)


_HANDLERS: dict[str, Callable[[SweepState, Mapping[str, Any]], None]] = {
    "created": SweepState._created,
    "trial": SweepState._trial_added,
    "attempt": SweepState._attempt,
    "checkpoint": SweepState._checkpoint,
    "result": SweepState._result,
    "finished": SweepState._finished,
    "sweep": SweepState._sweep,
}


class RegistryPort(Protocol):
    """What a session needs of the registry, wherever it lives."""

    async def start_attempt(self, trial_id: str) -> AttemptGrant: ...

    async def commit_checkpoint(self, checkpoint: CheckpointRecord) -> None: ...

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float]
    ) -> None: ...

    async def finish(self, trial_id: str, attempt: int, state: str, error: str | None) -> None: ...


class Registry:
    """The one writer of a sweep's journal. Owns the journal's lock until `close`."""

    def __init__(self, paths: SweepPaths, *, clock: Callable[[], float] = time.time) -> None:
        self._lock = Lock(paths.journal / "lock", wait_s=10)
        self._clock = clock
        self.state = SweepState.read(paths)
        self._log = SegmentLog(paths.journal)

    def create(self, meta: Mapping[str, Any], trials: Iterable[TrialRecord]) -> None:
        """Declare the sweep and those of its trials that are not known yet."""
        records: list[dict[str, Any]] = []
        if not self.state.meta:
            records.append({"type": "created", "meta": dict(meta)})
        records += [
            {"type": "trial", "trial": _plain(t)}
            for t in trials
            if t.trial_id not in self.state.trials
        ]
        self._append(*records)

    def start_attempt(self, trial_id: str) -> AttemptGrant:
        """Fence off all earlier attempts; say where to resume."""
        trial = self.state.trial(trial_id)
        grant = AttemptGrant(trial.attempt + 1, trial.last_checkpoint)
        self._append({"type": "attempt", "trial_id": trial_id, "attempt": grant.attempt})
        return grant

    def commit_checkpoint(self, checkpoint: CheckpointRecord) -> None:
        trial = self._current(checkpoint.trial_id, checkpoint.attempt)
        if checkpoint not in trial.checkpoints:
            self._append({"type": "checkpoint", "checkpoint": asdict(checkpoint)})

    def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float]
    ) -> None:
        """The evaluation at `step`."""
        self._current(trial_id, attempt)
        self._append(
            {"type": "result", "trial_id": trial_id, "step": step, "metrics": dict(metrics)}
        )

    def finish(self, trial_id: str, attempt: int, state: str, error: str | None) -> None:
        """End the attempt: done, failed, or pending (to be resumed later)."""
        self._current(trial_id, attempt)
        self._append({"type": "finished", "trial_id": trial_id, "state": state, "error": error})

    def set_sweep(self, state: str, *, wall_s: float = 0.0) -> None:
        self._append({"type": "sweep", "state": state, "wall_s": wall_s})

    def _current(self, trial_id: str, attempt: int) -> TrialRecord:
        trial = self.state.trial(trial_id)
        if attempt != trial.attempt:
            raise StaleAttemptError(
                f"attempt {attempt} of trial {trial_id} was replaced by attempt {trial.attempt}"
            )
        return trial

    def _append(self, *records: dict[str, Any]) -> None:
        lines = [json.dumps({**r, "time": self._clock()}, sort_keys=True) for r in records]
        self._log.append([line.encode() for line in lines])
        for line in lines:
            self.state.apply(json.loads(line))

    def close(self) -> None:
        self._log.close()
        self._lock.close()


def _plain(trial: TrialRecord) -> dict[str, Any]:
    """The declared part of a trial; the rest follows from later records."""
    keys = ("trial_id", "index", "run_name", "values", "seed", "total_steps", "reference")
    return {k: getattr(trial, k) for k in keys}
