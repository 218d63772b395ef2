"""What the finished sweeps of a storage folder teach a prior: a record for every trial that is
done, and for those that a rule stopped for them.

Guarantees: only reads; a sweep that cannot be read, or that has no base to learn from, is passed
over and named, since a new sweep must not fail by an old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from crucible_tinkex.config.section import get_dotted
from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.names import SweepPaths, canonical_json
from crucible_tinkex.registry import DONE, STOPPED, SweepState, TrialRecord
from crucible_tinkex.search.learned.records import RANK, RATE, USUAL_WAY, Record, way_of

BATCH = "train.batch_size"
ACCUMULATE = "train.accumulate"
_LATER = {**USUAL_WAY, ACCUMULATE: 1}
"""Settings that an old sweep may lack, as it had them."""
METRICS = ("eval/nll", "train/nll")
"""The first that all trials of a sweep have; both are better when smaller."""


@dataclass(frozen=True)
class Pace:
    """How a finished sweep went. `checkpoint_bytes`: of one checkpoint, for each rank of it."""

    tokens_per_s: float
    checkpoint_bytes: float | None


def finished_trials(storage: str | Path) -> tuple[list[Record], list[str]]:
    """Records of all sweeps below `storage`, and the names of those that could not be read."""
    unread: list[str] = []
    records = [r for _, state in _sweeps(storage, unread) for r in records_of(state)]
    return records, unread


def _sweeps(storage: str | Path, unread: list[str]) -> Iterator[tuple[SweepPaths, SweepState]]:
    """All that can be read; the names of the others go to `unread`."""
    for paths in SweepPaths.below(Path(storage).expanduser()):
        if not paths.journal.is_dir():
            continue
        try:
            yield paths, SweepState.read(paths)
        except (ConfigError, StorageError):
            unread.append(paths.root.name)


def speed(storage: str | Path, base: str) -> float | None:
    """Tokens a second of wall time at which the finished sweeps of this base trained, in the
    median; None where there are none."""
    found = [pace.tokens_per_s for pace in paces(storage, base)]
    return median(found) if found else None


def paces(storage: str | Path, base: str) -> list[Pace]:
    """Of every finished sweep below `storage` that trained this base."""
    found = []
    for paths, state in _sweeps(storage, []):
        of_base = state.meta.get("experiment", {}).get("model", {}).get("base") == base
        if of_base and state.complete and state.wall_s > 0 and state.spent.train_tokens:
            found.append(Pace(state.spent.tokens / state.wall_s, _checkpoint_bytes(paths, state)))
    return found


def _checkpoint_bytes(paths: SweepPaths, state: SweepState) -> float | None:
    """Of one checkpoint per rank of its adapter; None where they do not lie in the folder."""
    if not paths.service.is_dir():
        return None
    files = (f for f in (paths.service / "checkpoints").rglob("*") if f.is_file())
    usual = _settings(state.meta["experiment"])
    ranks = sum(
        {**usual, **trial.values}[RANK] * len(trial.all_checkpoints)
        for trial in state.trials.values()
    )
    total = sum(f.stat().st_size for f in files)
    return total / ranks if total and ranks else None


def records_of(state: SweepState) -> Iterator[Record]:
    """Of the trials that are done, then of those that a rule stopped for them."""
    done = [t for t in state.trials.values() if t.state == DONE and not t.reference]
    metric = next((m for m in METRICS if all(m in t.metrics for t in done)), None)
    if not done or metric is None:
        return
    declared = state.meta["experiment"]
    usual = _settings(declared)
    sweep = str(state.meta.get("sweep_id", ""))
    best = min(t.metrics[metric] for t in done)
    outdone = [t for t in state.trials.values() if _is_outdone(t) and metric in t.metrics]
    for trial in [*done, *outdone]:
        values = {**usual, **trial.values}
        others = {k: v for k, v in trial.values.items() if k not in (RATE, RANK, BATCH)}
        yield Record(
            base=declared["model"]["base"],
            learning_rate=values[RATE],
            rank=values[RANK],
            batch_size=values[BATCH] * values[ACCUMULATE],
            steps=trial.total_steps,
            metric=trial.metrics[metric]
            if trial.state == DONE
            else max(best, trial.metrics[metric]),
            sweep=f"{sweep} {canonical_json(others)}",
            way=way_of(values),
            outdone=trial.state != DONE,
        )


def _is_outdone(trial: TrialRecord) -> bool:
    """Stopped by a rule of the search, not by a person or a budget."""
    return trial.state == STOPPED and not trial.hold


def _settings(declared: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial has where nothing of it varies; `declared` is an experiment with all keys, but
    those that an old sweep may not have."""
    found = {key: get_dotted(declared, key) for key in (RATE, RANK, BATCH, *_LATER)}
    return {key: _LATER.get(key) if value is None else value for key, value in found.items()}
