"""Which checkpoints of a sweep are kept: a pure choice, so that it can be shown before it is done.

Kept is what any rule wants, and what is protected whatever the rules say: what is pinned, what is
registered as a model, what a trial that may still train goes on from (and the one before, to which
it falls back), what a clone begins at, what ranks a trial, and the newest of those that are the
best or, while the sweep goes on, may yet be. A checkpoint without the metric, or with NaN for it,
is never among the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import (
    DONE,
    STOPPED,
    CheckpointRecord,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.sweep.results.leaderboard import Objective, best
from crucible_tinkex.sweep.results.trained import counting_checkpoint
from crucible_tinkex.training.attempt.measurements import public

RESUMED = 2
"""Of a trial that may go on: its newest checkpoint, and the one before in case that cannot be
loaded."""


@dataclass(frozen=True)
class Retention:
    """Rules; 0 switches one off."""

    best: int = 0
    """So many of the whole sweep, by the metric."""
    last: int = 0
    """So many of each trial and kind, the newest."""
    every: int = 0
    """Those at a multiple of so many steps."""

    def __post_init__(self) -> None:
        if min(self.best, self.last, self.every) < 0:
            raise ConfigError("retention: best, last and every must be 0 or more")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a sweep, and what speaks for keeping it."""

    record: CheckpointRecord
    """Without what only a resumed session needs."""
    trial: str
    """The trial's name."""
    pinned: bool = False
    models: Sequence[str] = ()
    """Ids of the models that it is registered as."""
    needed: str | None = None
    """Why the sweep itself needs it."""
    kept_by: Sequence[str] = field(default=(), compare=False)
    """Rules that keep it, after `plan`."""

    @property
    def path(self) -> str:
        return self.record.path

    @property
    def protected(self) -> str | None:
        """Why it is never deleted; None if it may be."""
        if self.pinned:
            return "pinned"
        return f"model {self.models[0]}" if self.models else self.needed

    def value(self, metric: str) -> float | None:
        found = self.record.metrics.get(metric)
        return found if found is not None and math.isfinite(found) else None


def checkpoints(state: SweepState, models: Mapping[str, Sequence[str]]) -> list[Checkpoint]:
    """All of a sweep, trial by trial, oldest first. `models`: ids by checkpoint path."""
    needed = _needed(state)
    return [
        Checkpoint(
            replace(c, metrics=public(c.metrics)),
            trial.run_name,
            c.path in trial.pinned,
            models.get(c.path, ()),
            needed.get(c.path) or ("a clone begins at it" if state.needed(c.path) else None),
        )
        for trial in state.trials.values()
        for c in sorted(trial.all_checkpoints, key=lambda c: (c.step, c.attempt))
    ]


def is_final(state: SweepState) -> bool:
    """Whether the sweep has its answer: nothing more is asked for, unless a person amends it."""
    return state.ended is not None and not state.ended_by and not state.open


def _needed(state: SweepState) -> dict[str, str]:
    """By path, why the sweep itself needs a checkpoint."""
    objective = Objective.of(state)
    trials = [t for t in state.trials.values() if t.all_checkpoints]
    found = {c.path: why for t in trials for c, why in _goes_on(t)}
    if objective.at == "best":
        for trial in trials:
            step = objective.step(trial)
            of_step = (c for c in trial.all_checkpoints if c.step == step)
            found |= {c.path: "its step ranks its trial" for c in of_step}
    return {**{c.path: why for c, why in _may_win(state, trials, objective)}, **found}


def _goes_on(trial: TrialRecord) -> Iterator[tuple[CheckpointRecord, str]]:
    """Those that failed or were lost included: a person may ask to try them again."""
    if trial.state not in (DONE, STOPPED):
        for checkpoint in trial.resumable()[:RESUMED]:
            yield checkpoint, "its trial goes on from it"


def _may_win(
    state: SweepState, trials: Sequence[TrialRecord], objective: Objective
) -> Iterator[tuple[CheckpointRecord, str]]:
    """Where no configuration is complete, seeds that were stopped are trained to the end. Until the
    sweep has its answer, seeds that are still to come decide who is best. (Where the best step
    ranks, it is kept of every trial already.)"""
    winner = best(state)
    for trial in trials:
        why = None
        if winner is not None and trial is winner.best_trial and not trial.reference:
            why = "its trial is the best"
            yield counting_checkpoint(trial, objective), why
            why = why if objective.at == "final" else None
        elif trial.state == STOPPED and winner is None:
            why = "its trial may be trained to the end"
        elif trial.state == DONE and objective.at == "final" and not is_final(state):
            why = "its trial may yet be the best"
        if why is not None:
            newest = (*trial.resumable()[:1], *trial.samplers[-1:])
            yield from ((checkpoint, why) for checkpoint in newest)


def best_first(
    found: Collection[Checkpoint], metric: str, direction: str, *, kind: str | None = None
) -> list[Checkpoint]:
    """Those that have a finite value, the best first; of equals the newest, and for sampling."""
    sign = 1.0 if direction == "min" else -1.0
    return sorted(
        (c for c in found if c.value(metric) is not None and kind in (None, c.record.kind)),
        key=lambda c: (
            sign * (c.value(metric) or 0.0),
            -c.record.step,
            c.record.kind != "sampler",
            c.trial,
        ),
    )


def plan(
    found: Sequence[Checkpoint], rules: Retention, *, metric: str, direction: str
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Those to keep, with why, and those to delete."""
    kept: dict[str, list[str]] = {c.path: [] for c in found}
    for checkpoint in found:
        if checkpoint.protected:
            kept[checkpoint.path].append(checkpoint.protected)
    for checkpoint in best_first(found, metric, direction)[: rules.best]:
        kept[checkpoint.path].append(f"best by {metric}")
    for path, reason in (*_last(found, rules.last), *_every(found, rules.every)):
        kept[path].append(reason)
    marked = [replace(c, kept_by=tuple(kept[c.path])) for c in found]
    return [c for c in marked if c.kept_by], [c for c in marked if not c.kept_by]


def _last(found: Sequence[Checkpoint], count: int) -> Iterator[tuple[str, str]]:
    groups: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in found:
        groups.setdefault((checkpoint.trial, checkpoint.record.kind), []).append(checkpoint)
    for group in groups.values():
        for checkpoint in group[-count:] if count else ():
            yield checkpoint.path, "last of its trial"


def _every(found: Sequence[Checkpoint], steps: int) -> Iterator[tuple[str, str]]:
    for checkpoint in found if steps else ():
        if checkpoint.record.step % steps == 0:
            yield checkpoint.path, f"step {checkpoint.record.step}"
