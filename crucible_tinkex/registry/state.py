"""`SweepState`: what a journal folds to. A pure fold: equal records give equal states.

Records of older versions are understood (version 1 had neither runs nor decisions), unknown types
and fields of newer ones are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry.decided import carry_out
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.registry.records import (
    ATTESTED,
    DONE,
    FAIL_FAST,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    STOPPED,
    TERMINAL,
    CheckpointRecord,
    Decision,
    Expiry,
    Spent,
    TrialRecord,
    known,
    read_spent,
    undeclared,
)
from crucible_tinkex.registry.resolved import read_resolved

Record = Mapping[str, Any]


@dataclass
class SweepState:
    """What the journal says. `state` is pending, running, done or interrupted."""

    version: int = 0
    """Of the records that created the sweep; 0 before there are any."""
    meta: dict[str, Any] = field(default_factory=dict)
    state: str = PENDING
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    wall_s: float = 0.0
    """Seconds spent by runs that ended in order."""
    spent: Spent = field(default_factory=Spent)
    """By all attempts of all trials, and by the proofs of what the service applies."""
    proofs: Spent = field(default_factory=Spent)
    """The part of it that proofs took, before any trial."""
    runs: list[str] = field(default_factory=list)
    """Ids of all runs; the newest one's epoch is their number."""
    amendments: list[Record] = field(default_factory=list)
    """With `trials`: how many there were before."""
    ended: str | None = None
    """The reason of the policy's decision to end; None while trials are still asked for."""
    ended_by: str = ""
    """"budget" or "fail_fast" where that was the reason."""
    failures: set[str] = field(default_factory=set)
    """Trials that failed in the newest run."""
    held: bool = False
    """A person paused the whole sweep; a new run goes on."""
    commands: dict[str, str] = field(default_factory=dict)
    """What was answered, by the command's id."""
    ops: set[str] = field(default_factory=set)
    """Operations that have no other mark by which a repetition is recognised."""
    open: dict[str, TrialRecord] = field(default_factory=dict)
    """The trials that have not ended."""
    active: dict[str, TrialRecord] = field(default_factory=dict)
    """Of those, the ones that are not paused: what the policy looks at after every event."""
    measured: dict[int, list[TrialRecord]] = field(default_factory=dict)
    """By step, the trials that have a result there, in the order in which they came."""
    paused: dict[int, list[TrialRecord]] = field(default_factory=dict)
    """By step, the trials that were paused there, also those that have gone on since."""
    forks: dict[str, list[TrialRecord]] = field(default_factory=dict)
    """By path of a checkpoint, the trials that began there. Whoever deletes checkpoints keeps it
    (`needed`)."""
    saved: int = 0
    """Checkpoints that were committed, also those that are gone since."""
    deleted: int = 0
    """Checkpoints that were deleted by a decision."""
    buried: dict[str, str] = field(default_factory=dict)
    """By path of a checkpoint that is being deleted, its trial's id."""
    expiries: dict[str, Expiry] = field(default_factory=dict)
    """By path, checkpoints that the service deletes by itself, as far as runs asked it to."""
    grants: dict[str, int] = field(default_factory=dict)
    """Operation id of every granted attempt, and its number."""

    @classmethod
    def read(cls, paths: SweepPaths) -> SweepState:
        """Fold a sweep's journal without owning it; works while it runs, and while it starts: then
        its folder says what it will be."""
        if not paths.journal.is_dir() and not paths.resolved.exists():
            raise ConfigError(f"no sweep at {paths.root}")
        state = cls().fold(read_records(paths.journal))
        if not state.meta and paths.resolved.exists():
            state.meta = read_resolved(paths)
        return state

    def fold(self, records: Iterable[Record]) -> SweepState:
        for record in records:
            self.apply(record)
        return self

    def apply(self, record: Record) -> None:
        """Fold one record; types that this version does not know change nothing."""
        handler = _HANDLERS.get(record["type"])
        if handler:
            handler(self, record)
        if "op" in record:
            self.ops.add(record["op"])

    def _index(self, trial: TrialRecord) -> None:
        for index, is_in in (
            (self.open, trial.state not in TERMINAL),
            (self.active, trial.state not in (*TERMINAL, PAUSED)),
        ):
            if is_in:
                index[trial.trial_id] = trial
            else:
                index.pop(trial.trial_id, None)

    @property
    def epoch(self) -> int:
        return len(self.runs)

    def trial(self, trial_id: str) -> TrialRecord:
        try:
            return self.trials[trial_id]
        except KeyError:
            raise ConfigError(f"no trial {trial_id!r} in this sweep") from None

    def named(self, names: Sequence[str]) -> list[TrialRecord]:
        """As people call them, by one of their `names`. Raises `ConfigError` for one that is not
        there."""
        known = {name: t for t in self.trials.values() for name in t.names}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(
                f"no trial {unknown[0]!r} in this sweep; `crucible status` shows them"
            )
        return [known[name] for name in names]

    def needed(self, path: str) -> bool:
        """Whether a fork may still have to begin at this checkpoint: it is not done, or has no
        checkpoint of its own."""
        return any(t.state != DONE or not t.checkpoints for t in self.forks.get(path, ()))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do, as far as the journal knows."""
        is_over = self.ended is not None and self.ended_by != FAIL_FAST
        return (is_over or self.version == 1) and not self.open

    # --- records ------------------------------------------------------------------------------

    def _run(self, record: Record) -> None:
        if record["run"] not in self.runs:
            self.runs.append(record["run"])
            self.ended, self.ended_by, self.held = None, "", False
            self.failures = set()

    def _created(self, record: Record) -> None:
        self.meta = dict(record["meta"])
        self._prove(self.meta.get(ATTESTED, {}))
        self.version = record.get("v", 1)

    def _amended(self, record: Record) -> None:
        self.meta = {**self.meta, **record["meta"]}
        self._prove(record["meta"].get(ATTESTED, {}))
        self.amendments.append({**record, "trials": len(self.trials)})
        self.ended, self.ended_by = None, ""

    def _prove(self, attested: Record) -> None:
        """What proofs cost is told as a sum, so that telling it twice changes nothing."""
        if "spent" not in attested:
            return
        proofs = read_spent(attested)
        self.spent += proofs - self.proofs
        self.proofs = proofs

    def _trial_added(self, record: Record) -> None:
        trial = undeclared(record["trial"])
        trial.target = trial.total_steps
        self._index(self.trials.setdefault(trial.trial_id, trial))

    def _decision(self, record: Record) -> None:
        decision = known(Decision, {**record["decision"], "time": record["time"]})
        if decision.kind == "end":
            self.ended, self.ended_by = decision.reason, decision.by
            return
        if decision.kind == "command":
            self._command(decision)
            return
        if decision.kind in ("fork", "retry"):
            self.ended, self.ended_by = None, ""
        if decision.kind == "retry":
            self.failures.discard(decision.trial_id)
        if decision.trial is not None:
            self._add(undeclared(decision.trial))
        trial = self.trials[decision.trial_id]
        trial.decisions.append(replace(decision, trial=None))  # the trial knows itself
        carry_out(trial, decision)
        if trial.state == PAUSED and not trial.hold:
            self.paused.setdefault(trial.target, []).append(trial)
        self._index(trial)

    def _command(self, decision: Decision) -> None:
        command = decision.command or {}
        self.commands[command.get("command_id", "")] = decision.reason
        whole = not command.get("trials") and not decision.reason.startswith("refused")
        if whole and command.get("kind") in ("pause", "unpause"):
            self.held = command["kind"] == "pause"

    def _add(self, trial: TrialRecord) -> None:
        if trial.trial_id in self.trials:
            return
        self.trials[trial.trial_id] = trial
        if trial.origin and trial.origin.path:
            self.forks.setdefault(trial.origin.path, []).append(trial)

    def _attempt(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        trial.retries += trial.state == RUNNING and not trial.parked  # nobody ended the last one
        trial.attempt = record["attempt"]
        if "grant" in record:
            self.grants[record["grant"]] = trial.attempt
        if trial.state not in (PAUSED, STOPPED):  # decided on while its session began
            trial.state, trial.error = RUNNING, None
        resume = trial.last_checkpoint
        trial.step = resume.step if resume else trial.first_step
        self._index(trial)

    def _intent(self, record: Record) -> None:
        self.trials[record["trial_id"]].intents[_name(record["path"])] = record["path"]

    def _checkpoint(self, record: Record) -> None:
        checkpoint = known(CheckpointRecord, record["checkpoint"])
        self.saved += 1
        trial = self.trials[checkpoint.trial_id]
        trial.intents.pop(_name(checkpoint.path), None)
        if checkpoint.kind == "sampler":
            trial.samplers.append(checkpoint)
        else:
            trial.checkpoints.append(checkpoint)
            trial.step = max(trial.step, checkpoint.step)
        self._spend(trial, checkpoint.attempt, record)

    def _checkpoint_lost(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        samplers = [c for c in trial.samplers if c.path != record["path"]]
        if len(samplers) < len(trial.samplers):
            trial.samplers = samplers
            return
        trial.checkpoints = [c for c in trial.checkpoints if c.path != record["path"]]
        trial.intents.pop(_name(record["path"]), None)
        trial.step = trial.last_checkpoint.step if trial.last_checkpoint else trial.first_step

    def _pinned(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        if record["pinned"]:
            trial.pinned.add(record["path"])
        else:
            trial.pinned.discard(record["path"])

    def _tombstone(self, record: Record) -> None:
        """What was learnt is still learnt, so the trial's step stays."""
        trial, path = self.trials[record["trial_id"]], record["path"]
        trial.checkpoints = [c for c in trial.checkpoints if c.path != path]
        trial.samplers = [c for c in trial.samplers if c.path != path]
        trial.intents = {name: p for name, p in trial.intents.items() if p != path}
        trial.tombstones[path] = record["reason"]
        self.buried[path] = trial.trial_id
        self.expiries.pop(path, None)

    def _deleted(self, record: Record) -> None:
        self.trials[record["trial_id"]].tombstones.pop(record["path"], None)
        self.deleted += self.buried.pop(record["path"], None) is not None

    def _expiry(self, record: Record) -> None:
        self.expiries[record["path"]] = Expiry(record["at"])

    def _expiry_set(self, record: Record) -> None:
        path = record["path"]
        if self.expiries.get(path) == Expiry(record["at"]):
            self.expiries[path] = Expiry(record["at"], done=True)
            if record["at"] is None:
                del self.expiries[path]

    def _result(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        step, metrics = record["step"], dict(record["metrics"])
        trial.step = max(trial.step, step)
        trial.metrics, trial.metrics_step = metrics, step
        if trial.results.get(step) != metrics:
            self.measured.setdefault(step, []).append(trial)
        trial.results[step] = metrics
        self._spend(trial, trial.attempt, record)

    def _finished(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        is_later = record["state"] in (PENDING, PAUSED)  # than the decision, which stands
        if not is_later or trial.state not in (PAUSED, STOPPED):
            trial.state, trial.error = record["state"], record["error"]
        trial.retries += record["state"] == PENDING and record["error"] is not None
        if trial.state == FAILED:
            self.failures.add(trial.trial_id)
        self._spend(trial, trial.attempt, record)
        self._index(trial)

    def _spent(self, record: Record) -> None:
        trial = self.trials[record["trial_id"]]
        self._spend(trial, trial.attempt, record)

    def _spend(self, trial: TrialRecord, attempt: int, record: Record) -> None:
        if "spent" in record:
            spent = known(Spent, record["spent"])
            self.spent += spent - trial.spends.get(attempt, Spent())
            trial.spends[attempt] = spent

    def _sweep(self, record: Record) -> None:
        self.state = record["state"]
        self.wall_s += record.get("wall_s", 0.0)


def _name(path: str) -> str:
    """What a service may put before it differs."""
    return path.rsplit("/", 1)[-1]


_HANDLERS: dict[str, Callable[[SweepState, Record], None]] = {
    "run": SweepState._run,
    "created": SweepState._created,
    "amended": SweepState._amended,
    "trial": SweepState._trial_added,
    "decision": SweepState._decision,
    "attempt": SweepState._attempt,
    "intent": SweepState._intent,
    "checkpoint": SweepState._checkpoint,
    "checkpoint_lost": SweepState._checkpoint_lost,
    "pinned": SweepState._pinned,
    "tombstone": SweepState._tombstone,
    "deleted": SweepState._deleted,
    "expiry": SweepState._expiry,
    "expiry_set": SweepState._expiry_set,
    "proof": SweepState._prove,
    "result": SweepState._result,
    "spent": SweepState._spent,
    "finished": SweepState._finished,
    "sweep": SweepState._sweep,
}
