"""The one writer of a sweep's journal, and the ports through which others use it.

Guarantees: a call returns only after its records are durable; every call may be repeated without
effect (callers send it again when an actor dies under them); a write that carries an older attempt
number is refused with `StaleAttemptError`, one of an older run with `StaleEpochError`, so two
copies of one trial, or two drivers, can never both leave results. A failed journal write always
raises, and every later one does: nothing goes on that could not be remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from crucible_tinkex.errors import StaleAttemptError, StaleEpochError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry.journal import VERSION, JournalWriter, read_records
from crucible_tinkex.registry.records import (
    RUNNING,
    AttemptGrant,
    CheckpointRecord,
    Decision,
    Spent,
    TrialRecord,
    Used,
)
from crucible_tinkex.registry.state import SweepState
from crucible_tinkex.storage import Lock


class Changes(NamedTuple):
    """Records from some number on, and the number to ask from next time."""

    records: Sequence[Mapping[str, Any]]
    until: int


class RegistryPort(Protocol):
    """What a session needs of the registry, wherever it lives."""

    async def start_attempt(self, trial_id: str) -> AttemptGrant:
        """Fence off all earlier attempts; say where it may go on from."""
        ...

    async def intend_checkpoint(self, trial_id: str, attempt: int, path: str) -> None:
        """Before the service is asked to save there."""
        ...

    async def commit_checkpoint(self, checkpoint: CheckpointRecord, spent: Spent) -> None:
        """After the service has saved."""
        ...

    async def lose_checkpoint(self, trial_id: str, attempt: int, path: str, reason: str) -> None:
        """The service cannot load it, or has deleted an orphan: nobody looks for it again."""
        ...

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float], spent: Spent
    ) -> None:
        """The evaluation at `step`."""
        ...

    async def record_spend(
        self, trial_id: str, attempt: int, spent: Spent, announced: Spent | None = None
    ) -> Used:
        """What the attempt will have used once its next operation is sent, where a budget must be
        kept. Answers what everybody has used with that: of several who ask at the same time, each
        hears of those before it. `announced`: what an evaluation will use beyond it, which others
        hear of until its result, or another call without; no journal keeps it."""
        ...

    async def finish(
        self, trial_id: str, attempt: int, state: str, error: str | None, spent: Spent
    ) -> None:
        """End the attempt: done, failed, stopped, paused, lost, or pending (to go on later)."""
        ...


class ControlPort(RegistryPort, Protocol):
    """What the controller needs. `op` names an operation: the same one again changes nothing."""

    async def create(self, meta: Mapping[str, Any]) -> None:
        """Declare the sweep; no effect if it is declared."""
        ...

    async def amend(self, meta: Mapping[str, Any], changed: Sequence[str], op: str) -> None:
        """The sweep asks for something else from now on."""
        ...

    async def decide(self, decisions: Sequence[Decision], op: str) -> None: ...

    async def upkeep(self, records: Sequence[Mapping[str, Any]], op: str) -> None:
        """What becomes of checkpoints: `tombstone`, `deleted`, `expiry`, `expiry_set`."""
        ...

    async def set_sweep(self, state: str, op: str, wall_s: float = 0.0) -> None: ...

    async def changes(self, since: int) -> Changes:
        """All durable records from number `since` on."""
        ...

    async def close(self) -> None: ...


class Registry:
    """A `ControlPort` on a folder. Owns the journal's lock until `close`."""

    def __init__(
        self, paths: SweepPaths, run_id: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Join `run_id`, or begin it. Raises `StaleEpochError` if a newer run exists."""
        self.run_id = run_id
        self._clock = clock
        self._announced: dict[str, tuple[int, Spent]] = {}
        """By trial, the attempt and what its evaluation will use."""
        self._lock = Lock(paths.journal / "lock", wait_s=10)
        try:
            self._open(paths)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, paths: SweepPaths) -> None:
        self._journal = JournalWriter(paths.journal)
        try:
            self._records: list[Mapping[str, Any]] = list(read_records(paths.journal))
            self._before = len(self._records)
            self.state = SweepState().fold(self._records)
            if self.run_id in self.state.runs[:-1]:
                raise StaleEpochError(f"a newer run owns the sweep at {paths.root}")
            number = self.state.epoch + (self.run_id not in self.state.runs)
            follows = self._journal.follows
            self._epoch = number
            self._stage({"type": "run", "run": self.run_id, "follows": follows})
            self._journal.write()
        except BaseException:
            self._journal.close()
            raise

    # --- sessions -----------------------------------------------------------------------------

    async def start_attempt(self, trial_id: str, grant: str = "") -> AttemptGrant:
        """`grant` names the operation: the same one again is the same attempt."""
        trial = self.state.trial(trial_id)
        if grant in self.state.grants:
            attempt = self.state.grants[grant]
            self._current(trial_id, attempt)
        else:
            attempt = trial.attempt + 1
            record = {"type": "attempt", "trial_id": trial_id, "attempt": attempt}
            self._stage({**record, "grant": grant} if grant else record)
        await self._journal.flush()
        return AttemptGrant(attempt, trial.resumable(), tuple(trial.intents.values()))

    async def intend_checkpoint(self, trial_id: str, attempt: int, path: str) -> None:
        trial = self._current(trial_id, attempt)
        if not trial.knows_checkpoint(path):
            self._stage({"type": "intent", "trial_id": trial_id, "path": path})
        await self._journal.flush()

    async def commit_checkpoint(self, checkpoint: CheckpointRecord, spent: Spent) -> None:
        trial = self._current(checkpoint.trial_id, checkpoint.attempt)
        if all(c.path != checkpoint.path for c in trial.all_checkpoints):
            record = {"type": "checkpoint", "checkpoint": {**vars(checkpoint)}}
            self._stage({**record, "spent": {**vars(spent)}})
        await self._journal.flush()

    async def lose_checkpoint(self, trial_id: str, attempt: int, path: str, reason: str) -> None:
        trial = self._current(trial_id, attempt)
        if trial.knows_checkpoint(path):
            record = {"type": "checkpoint_lost", "trial_id": trial_id}
            self._stage({**record, "path": path, "reason": reason})
        await self._journal.flush()

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float], spent: Spent
    ) -> None:
        trial = self._current(trial_id, attempt)
        if not (trial.metrics_step == step and str(trial.metrics) == str(dict(metrics))):
            record = {"type": "result", "trial_id": trial_id, "step": step}
            self._stage({**record, "metrics": dict(metrics), "spent": {**vars(spent)}})
        self._announced.pop(trial_id, None)
        await self._journal.flush()

    async def record_spend(
        self, trial_id: str, attempt: int, spent: Spent, announced: Spent | None = None
    ) -> Used:
        trial = self._current(trial_id, attempt)
        if trial.spends.get(attempt) != spent:
            self._stage({"type": "spent", "trial_id": trial_id, "spent": {**vars(spent)}})
        self._announced.pop(trial_id, None)
        now = Used(self.state.spent, trial.spent, self._announced_now())
        if announced is not None:
            self._announced[trial_id] = attempt, announced
        await self._journal.flush()
        return now

    def _announced_now(self) -> Spent:
        """By attempts that still run."""
        running = ((self.state.trials[i], n, spent) for i, (n, spent) in self._announced.items())
        return sum((s for t, n, s in running if (t.state, t.attempt) == (RUNNING, n)), Spent())

    async def finish(
        self, trial_id: str, attempt: int, state: str, error: str | None, spent: Spent
    ) -> None:
        trial = self._current(trial_id, attempt)
        self._announced.pop(trial_id, None)
        if (trial.state, trial.error, trial.spends.get(attempt)) != (state, error, spent):
            record = {"type": "finished", "trial_id": trial_id, "state": state, "error": error}
            self._stage({**record, "spent": {**vars(spent)}})
        await self._journal.flush()

    def _current(self, trial_id: str, attempt: int) -> TrialRecord:
        trial = self.state.trial(trial_id)
        if attempt != trial.attempt:
            raise StaleAttemptError(
                f"attempt {attempt} of trial {trial_id} was replaced by attempt {trial.attempt}"
            )
        return trial

    # --- the controller -----------------------------------------------------------------------

    async def create(self, meta: Mapping[str, Any]) -> None:
        if not self.state.meta:
            self._stage({"type": "created", "meta": dict(meta)})
        await self._journal.flush()

    async def amend(self, meta: Mapping[str, Any], changed: Sequence[str], op: str) -> None:
        self._once(op, {"type": "amended", "meta": dict(meta), "changed": list(changed)})
        await self._journal.flush()

    async def decide(self, decisions: Sequence[Decision], op: str) -> None:
        records = [{"type": "decision", "decision": _plain(d)} for d in decisions]
        self._once(op, *records)
        await self._journal.flush()

    async def upkeep(self, records: Sequence[Mapping[str, Any]], op: str) -> None:
        self._once(op, *records)
        await self._journal.flush()

    async def set_sweep(self, state: str, op: str, wall_s: float = 0.0) -> None:
        self._once(op, {"type": "sweep", "state": state, "wall_s": wall_s})
        await self._journal.flush()

    async def changes(self, since: int) -> Changes:
        durable = self._before + self._journal.written
        return Changes(self._records[since:durable], durable)

    async def close(self) -> None:
        self.shut()

    def shut(self) -> None:
        """Give the journal free."""
        self._journal.close()
        self._lock.close()

    def _once(self, op: str, *records: Mapping[str, Any]) -> None:
        if op not in self.state.ops:
            self._stage(*({**r, "op": op} for r in records))

    def _stage(self, *records: Mapping[str, Any]) -> None:
        now = self._clock()
        stamped = [{**r, "v": VERSION, "epoch": self._epoch, "time": now} for r in records]
        self._journal.stage(stamped)
        self._records += stamped
        for record in stamped:
            self.state.apply(record)


def _plain(decision: Decision) -> dict[str, Any]:
    """Without what says nothing; the record has the time."""
    found = {k: v for k, v in asdict(decision).items() if v not in ("", None) and k != "time"}
    return {k: v for k, v in found.items() if v != 0 or k == "to_step"}
