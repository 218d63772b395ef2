"""A registry in memory for the tests of a session: fenced, and every call may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crucible_tinkex.errors import StaleAttemptError
from crucible_tinkex.registry import PENDING, RUNNING, AttemptGrant, CheckpointRecord, Spent, Used


@dataclass
class Trial:
    state: str = PENDING
    error: str | None = None
    attempt: int = 0
    intents: list[str] = field(default_factory=list)
    """Paths of all checkpoints that were announced."""
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    """Committed and not lost, oldest first."""
    lost: dict[str, str] = field(default_factory=dict)
    """Path to reason."""
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step to metrics."""
    samplers: list[CheckpointRecord] = field(default_factory=list)
    spent: dict[int, Spent] = field(default_factory=dict)
    """Attempt to what it used."""


class MemoryRegistry:
    """A `RegistryPort`; `calls` lists what was asked."""

    def __init__(self) -> None:
        self.trials: dict[str, Trial] = {}
        self.calls: list[str] = []
        self.watch: Callable[[str, str], None] = lambda call, subject: None
        """Hears of each call about a checkpoint, and of its path."""
        self._failures: dict[tuple[str, int], Exception] = {}

    def fail(self, call: str, error: Exception, *, nth: int = 1) -> None:
        """Let the `nth` call fail before it does anything."""
        self._failures[call, nth] = error

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if error := self._failures.get((call, self.calls.count(call))):
            raise error

    def trial(self, trial_id: str) -> Trial:
        return self.trials.setdefault(trial_id, Trial())

    def _current(self, call: str, trial_id: str, attempt: int) -> Trial:
        trial = self.trial(trial_id)
        if attempt != trial.attempt:
            raise StaleAttemptError(f"attempt {attempt} was replaced by {trial.attempt}")
        self._called(call)
        return trial

    async def start_attempt(self, trial_id: str) -> AttemptGrant:
        self._called("start")
        trial = self.trial(trial_id)
        trial.attempt += 1
        trial.state, trial.error = RUNNING, None
        newest = sorted(trial.checkpoints, key=lambda c: (c.step, c.attempt), reverse=True)
        kept = {c.path for c in (*trial.checkpoints, *trial.samplers)}
        orphans = set(trial.intents) - kept - set(trial.lost)
        return AttemptGrant(trial.attempt, tuple(newest), tuple(sorted(orphans)))

    async def intend_checkpoint(self, trial_id: str, attempt: int, path: str) -> None:
        trial = self._current("intend", trial_id, attempt)
        self.watch("intend", path)
        trial.intents.append(path)

    async def commit_checkpoint(self, checkpoint: CheckpointRecord, spent: Spent) -> None:
        trial = self._current("commit", checkpoint.trial_id, checkpoint.attempt)
        self.watch("commit", checkpoint.path)
        found = trial.samplers if checkpoint.kind == "sampler" else trial.checkpoints
        if checkpoint not in found:
            found.append(checkpoint)
        trial.spent[checkpoint.attempt] = spent

    async def lose_checkpoint(self, trial_id: str, attempt: int, path: str, reason: str) -> None:
        trial = self._current("lose", trial_id, attempt)
        trial.checkpoints = [c for c in trial.checkpoints if c.path != path]
        trial.lost[path] = reason

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float], spent: Spent
    ) -> None:
        trial = self._current("result", trial_id, attempt)
        trial.results[step] = dict(metrics)
        trial.spent[attempt] = spent

    async def record_spend(
        self, trial_id: str, attempt: int, spent: Spent, announced: Spent | None = None
    ) -> Used:
        self._current("spend", trial_id, attempt).spent[attempt] = spent
        of_trials = {i: sum(t.spent.values(), Spent()) for i, t in self.trials.items()}
        return Used(sum(of_trials.values(), Spent()), of_trials[trial_id])

    async def finish(
        self, trial_id: str, attempt: int, state: str, error: str | None, spent: Spent
    ) -> None:
        trial = self._current("finish", trial_id, attempt)
        trial.state, trial.error = state, error
        trial.spent[attempt] = spent
