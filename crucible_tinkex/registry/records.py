"""What the journal tells about: trials, attempts, decisions, checkpoints, spend.

Values that cross processes are frozen; `TrialRecord` alone grows, and only inside `SweepState`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

PENDING, RUNNING, PAUSED = "pending", "running", "paused"
DONE, STOPPED, FAILED, LOST = "done", "stopped", "failed", "lost"
TERMINAL = (DONE, STOPPED, FAILED, LOST)
"""done: all its steps; stopped: by a rule, a budget or a person; failed: its own fault; lost: the
infrastructure's fault, a later run takes it up again."""
INTERRUPTED = "interrupted"
"""State of a sweep whose last run left something to do."""

SEARCH, CONFIRM = "search", "confirm"
"""Phases of a sweep: a trial of the search, or a leader again with a fresh seed."""

FAIL_FAST = "fail_fast"
"""By which a sweep ends whose trials all fail."""
PERSON = "person"
"""By whom a trial is paused or stopped that a command names."""

DecisionKind: TypeAlias = Literal[
    "start", "fork", "confirm", "advance", "pause", "stop", "retry", "command", "end"
]


CheckpointKind: TypeAlias = Literal["state", "sampler"]
"""state: weights and optimizer, resumable; sampler: the weights, to sample from and to export."""


@dataclass(frozen=True)
class Spent:
    """What one attempt has used so far. Cumulative, so that telling it twice changes nothing."""

    train_tokens: int = 0
    """Input tokens of forward_backward."""
    prefill_tokens: int = 0
    """Input tokens of forward passes and sampling prompts."""
    sample_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the attempt."""
    steps: int = 0
    """Optimizer steps that were sent; 0 in a journal of an older version."""

    @property
    def tokens(self) -> int:
        return self.train_tokens + self.prefill_tokens + self.sample_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def __sub__(self, other: Spent) -> Spent:
        return Spent(**{name: value - vars(other)[name] for name, value in vars(self).items()})


class Used(NamedTuple):
    """What has been sent, or is about to be, by all of a sweep and by one of its trials."""

    sweep: Spent
    trial: Spent
    announced: Spent = Spent()
    """Of evaluations that other trials are in the middle of, as far as it is not in `sweep` yet."""


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint that the service has acknowledged."""

    trial_id: str
    attempt: int
    step: int
    path: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest evaluation at or before `step`."""
    fingerprint: float | None = None
    """Of the weights (`Recipe.fingerprint`); None: not measured."""
    kind: CheckpointKind = "state"


@dataclass(frozen=True)
class Expiry:
    """When the service deletes a checkpoint by itself."""

    at: float | None
    """Unix seconds; None: it should be kept after all."""
    done: bool = False
    """The service was told."""


@dataclass(frozen=True)
class AttemptGrant:
    """The right to write for a trial, until a newer attempt is granted."""

    attempt: int
    checkpoints: tuple[CheckpointRecord, ...] = ()
    """Where it may go on from, the newest first."""
    orphans: tuple[str, ...] = ()
    """Paths that older attempts may have saved to and that nobody will load."""


@dataclass(frozen=True)
class Origin:
    """Which trial another was cloned from. Warm: it goes on from a checkpoint of its parent, with
    weights, optimizer state, step counter and data order, so that a clone which changes nothing
    would repeat its parent. Fresh: it begins anew; only the settings are the parent's."""

    parent: str
    step: int = 0
    """Of the checkpoint; 0 for a fresh one."""
    path: str | None = None
    """The checkpoint; None for a fresh one."""

    @property
    def warm(self) -> bool:
        return self.path is not None


@dataclass(frozen=True)
class Decision:
    """A recorded choice of the policy, with its reason in words."""

    kind: DecisionKind
    trial_id: str = ""
    to_step: int = 0
    """start, fork, confirm, advance: the rung that the trial trains up to."""
    total_steps: int = 0
    """The same: all steps that it may ever be asked for, as the experiment says now."""
    reason: str = ""
    trial: Mapping[str, Any] | None = None
    """start, fork, confirm: the declared part of a trial (`declared`)."""
    time: float = 0.0
    """Unix seconds; for display only."""
    by: str = ""
    """pause, stop, end: "person", "budget" or "fail_fast"; the search itself where it is empty."""
    command: Mapping[str, Any] | None = None
    """command: what a person asked (`sweep.orders.control.Command`); the reason is the answer."""


BASE = "base"
"""What the untrained base is called, in tables and by users."""


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
    phase: str = SEARCH
    origin: Origin | None = None
    """Of a clone."""
    state: str = PENDING
    attempt: int = 0
    retries: int = 0
    """How often it was tried again: its session was lost, or it had failed. A pause is no try."""
    step: int = 0
    """Steps whose effect is safe: the newest checkpoint's, or those of a recorded result."""
    target: int = 0
    """The rung that it was last told to train up to."""
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_step: int = -1
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    """Every evaluated step and its metrics."""
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    """Those that can be resumed."""
    samplers: list[CheckpointRecord] = field(default_factory=list)
    """Those for sampling; it has one at its end."""
    intents: dict[str, str] = field(default_factory=dict)
    """Names of checkpoints that were asked for and not yet committed, and their paths."""
    pinned: set[str] = field(default_factory=set)
    """Paths of checkpoints that a person wants kept."""
    tombstones: dict[str, str] = field(default_factory=dict)
    """Paths of checkpoints that are being deleted, and why; nobody loads them any more."""
    spends: dict[int, Spent] = field(default_factory=dict)
    """Per attempt."""
    decisions: list[Decision] = field(default_factory=list)
    hold: str = ""
    """Who paused or stopped it: "person", "budget" or "fail_fast"; the search itself where it is
    empty."""
    error: str | None = None
    """Why it failed, was lost or was stopped."""

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called by: id, name, number; the untrained base also as tables call it."""
        known = (self.trial_id, self.run_name, str(self.index))
        return (*known, BASE) if self.reference else known

    @property
    def first_step(self) -> int:
        """Where it began: 0, or the step of the checkpoint that it was forked from."""
        return self.origin.step if self.origin else 0

    @property
    def all_checkpoints(self) -> tuple[CheckpointRecord, ...]:
        """Its checkpoints of both kinds."""
        return (*self.checkpoints, *self.samplers)

    @property
    def last_checkpoint(self) -> CheckpointRecord | None:
        return max(self.checkpoints, key=_by_age, default=None)

    @property
    def spent(self) -> Spent:
        return sum(self.spends.values(), Spent())

    @property
    def parked(self) -> bool:
        """At its rung, where the policy must say how it goes on."""
        at_rung = self.target in self.results and self.target < self.total_steps
        return self.state == RUNNING and at_rung

    @property
    def is_waiting(self) -> bool:
        """Whether it should train now: it has a rung to reach and has not ended."""
        return self.state in (PENDING, RUNNING) and not self.parked

    def knows_checkpoint(self, path: str) -> bool:
        """Whether it was announced or committed, and neither lost nor deleted."""
        return any(c.path == path for c in self.all_checkpoints) or path in self.intents.values()

    def resumable(self) -> tuple[CheckpointRecord, ...]:
        """Its checkpoints, the newest first."""
        return tuple(sorted(self.checkpoints, key=_by_age, reverse=True))


ATTESTED = "attested"
"""Key of a sweep's metadata: what its service was proved to apply, by dotted key in `findings`, and
in `spent` what all the proofs together cost."""


def read_spent(attested: Mapping[str, Any]) -> Spent:
    """What the proofs cost. Their steps are none of a trial's, and not counted as such."""
    return replace(known(Spent, attested.get("spent", {})), steps=0)


def _by_age(checkpoint: CheckpointRecord) -> tuple[int, int]:
    return checkpoint.step, checkpoint.attempt


_DECLARED = ("trial_id", "index", "run_name", "values", "seed", "total_steps", "reference")


def declared(trial: Any) -> dict[str, Any]:
    """What is known of a trial (or of the plan of one) before it runs, as JSON values."""
    found = {k: getattr(trial, k) for k in _DECLARED}
    found = {**found, "values": dict(found["values"])}
    if trial.phase != SEARCH:
        found["phase"] = trial.phase
    if trial.origin:
        found["origin"] = asdict(trial.origin)
    return found


def undeclared(found: Mapping[str, Any]) -> TrialRecord:
    """The trial that `declared` told of."""
    trial = known(TrialRecord, found)
    if found.get("origin"):
        trial.origin = known(Origin, found["origin"])
    trial.step = trial.first_step
    return trial


def known(cls: type[T], found: Mapping[str, Any]) -> T:
    """`cls` from those fields of a record that this version knows."""
    names = _names(cls)  # type: ignore[arg-type]
    return cls(**{k: v for k, v in found.items() if k in names})


@cache
def _names(cls: type) -> frozenset[str]:
    """A journal asks for them at every record."""
    return frozenset(f.name for f in fields(cls))
