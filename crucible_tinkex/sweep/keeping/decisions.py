"""What is decided on a sweep's checkpoints, as journal records: a pure function of the journal.

A record comes before the deed: a `tombstone` before a deletion, an `expiry` before the service is
told, so that a run that breaks off between the two is finished by the next one, and repeating
either changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from crucible_tinkex.config import CheckpointsSection
from crucible_tinkex.registry import TERMINAL, SweepState
from crucible_tinkex.sweep.keeping.retention import (
    Checkpoint,
    Retention,
    checkpoints,
    is_final,
    plan,
)
from crucible_tinkex.sweep.results.leaderboard import Objective

Record: TypeAlias = dict[str, Any]
Models: TypeAlias = Mapping[str, Sequence[str]]
DAY_S = 24 * 3600


def section_of(state: SweepState) -> CheckpointsSection:
    """What the sweep asks for now; nothing in one of an older version."""
    return CheckpointsSection(**state.meta["experiment"].get("checkpoints", {}))


def decided(state: SweepState, models: Models, *, now: float) -> list[Record]:
    """`models`: ids of registered models by checkpoint path. `now`: Unix seconds."""
    section = section_of(state)
    kept = found = checkpoints(state, models)
    records: list[Record] = []
    if section.prunes:
        rules = Retention(section.keep_best, section.last, section.keep_every)
        objective = Objective.of(state)
        kept, dropped = plan(found, rules, metric=objective.metric, direction=objective.direction)
        records += [tombstone(c.record.trial_id, c.path, f"not kept by {rules}") for c in dropped]
        records += _orphans(state)
    return [*records, *_expiries(state, kept, section.ttl_days, now)]


def tombstone(trial_id: str, path: str, reason: str) -> Record:
    return {"type": "tombstone", "trial_id": trial_id, "path": path, "reason": reason}


def _orphans(state: SweepState) -> Iterator[Record]:
    """What ended trials announced and never committed, once no session can commit it any more."""
    if is_final(state):
        for trial in state.trials.values():
            if trial.state in TERMINAL:
                for path in trial.intents.values():
                    yield tombstone(trial.trial_id, path, "never committed")


def _expiries(
    state: SweepState, kept: Sequence[Checkpoint], ttl_days: float | None, now: float
) -> Iterator[Record]:
    """Only of a sweep that has its answer: while trials may go on, nothing they need expires."""
    ends = ttl_days is not None and is_final(state)
    for checkpoint in kept:
        known = state.expiries.get(checkpoint.path)
        expires = known is not None and known.at is not None
        wanted = ends and checkpoint.protected is None
        if wanted != expires:
            at = now + (ttl_days or 0) * DAY_S if wanted else None
            trial_id = checkpoint.record.trial_id
            yield {"type": "expiry", "trial_id": trial_id, "path": checkpoint.path, "at": at}
