"""The Python interface: run an experiment and look at what came out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from crucible_tinkex.config import Experiment
from crucible_tinkex.launch import launch
from crucible_tinkex.leaderboard import best, ranked, summary, trial_summary
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.preparation import load_sweep, prepare
from crucible_tinkex.registry import SweepState
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.sweep import Observer, ignore
from crucible_tinkex.telemetry.query import query, read_events


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk, running or ended. Every call reads it afresh."""

    paths: SweepPaths
    exit_code: int | None = None
    """How the run in this process ended; None for a sweep that was only opened."""

    @property
    def name(self) -> str:
        return self.paths.root.name

    def status(self) -> dict[str, Any]:
        """What `crucible status --json` prints."""
        return summary(SweepState.read(self.paths), self.paths)

    def best(self) -> dict[str, Any] | None:
        """The best trial of the best configuration, or None while nothing has finished."""
        winner = best(SweepState.read(self.paths))
        return trial_summary(winner) if winner else None

    def leaderboard(self) -> pa.Table:
        """One row per trial, the best first: what varied, seed, state, step, metrics."""
        rows = []
        for trial in ranked(SweepState.read(self.paths)):
            fixed = {"trial": trial.run_name, "reference": trial.reference, "seed": trial.seed}
            where = {"state": trial.state, "step": trial.step}
            rows.append({**fixed, **trial.values, **where, **trial.metrics})
        columns = list(dict.fromkeys(k for row in rows for k in row))
        return pa.table({c: [row.get(c) for row in rows] for c in columns})

    def events(
        self,
        *,
        kind: str | None = None,
        trial_id: str | None = None,
        name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pa.Table:
        """Telemetry rows of the current attempts."""
        return read_events(
            self.paths.events, kind=kind, trial_id=trial_id, name=name, since=since, until=until
        )

    def query(self, sql: str) -> pa.Table:
        """DuckDB SQL over the table `events`."""
        return query(self.paths.events, sql)


def run(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    address: str | None = None,
    runtime: Runtime | None = None,
    observer: Observer = ignore,
) -> Sweep:
    """Run an experiment, or continue its sweep; blocks until it ends or is interrupted.

    A `Runtime` that is passed in keeps its actors warm from sweep to sweep.
    """
    prepared = prepare(experiment, storage=storage, name=name)
    result = launch(prepared, address=address, runtime=runtime, observer=observer)
    return Sweep(prepared.paths, result.exit_code)


def open_sweep(name: str, *, storage: str = "runs") -> Sweep:
    """An existing sweep. Raises `ConfigError` if there is none."""
    load_sweep(storage, name)
    return Sweep(SweepPaths.of(storage, name))
