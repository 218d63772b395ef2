"""What the finished sweeps of a storage folder teach a prior: a record for every trial done.

Guarantees: only reads; a sweep that cannot be read, or that has no base to learn from, is passed
over and named, since a new sweep must not fail by an old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.names import SweepPaths, canonical_json
from crucible_tinkex.registry import DONE, SweepState
from crucible_tinkex.search.priors import RANK, RATE, Record

BATCH = "train.batch_size"
METRICS = ("eval/nll", "train/nll")
"""The first that all trials of a sweep have; both are better when smaller."""


def finished_trials(storage: str | Path) -> tuple[list[Record], list[str]]:
    """Records of all sweeps below `storage`, and the names of those that could not be read."""
    records: list[Record] = []
    unread: list[str] = []
    folder = Path(storage).expanduser()
    for root in sorted(folder.iterdir()) if folder.is_dir() else ():
        paths = SweepPaths(root)
        if not paths.journal.is_dir():
            continue
        try:
            records += _records(SweepState.read(paths))
        except (ConfigError, StorageError):
            unread.append(root.name)
    return records, unread


def _records(state: SweepState) -> Iterator[Record]:
    done = [t for t in state.trials.values() if t.state == DONE and not t.reference]
    metric = next((m for m in METRICS if all(m in t.metrics for t in done)), None)
    if not done or metric is None:
        return
    declared = state.meta["experiment"]
    sweep = str(state.meta.get("sweep_id", ""))
    for trial in done:
        values = {**_defaults(declared), **trial.values}
        others = {k: v for k, v in trial.values.items() if k not in (RATE, RANK, BATCH)}
        yield Record(
            base=declared["model"]["base"],
            learning_rate=values[RATE],
            rank=values[RANK],
            batch_size=values[BATCH],
            steps=trial.total_steps,
            metric=trial.metrics[metric],
            sweep=f"{sweep} {canonical_json(others)}",
        )


def _defaults(declared: dict[str, Any]) -> dict[str, Any]:
    """What a trial has where nothing of it varies; `declared` is an experiment with all keys."""
    dotted = {key: key.split(".") for key in (RATE, RANK, BATCH)}
    return {key: declared[section][name] for key, (section, name) in dotted.items()}
