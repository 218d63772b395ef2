"""A sweep's trials and checkpoints as Arrow tables, for SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from crucible_tinkex.registry import SweepState, TrialRecord


def query_tables(state: SweepState) -> dict[str, pa.Table]:
    """`trials`: one row each, with a column per hyperparameter and metric, named with underscores;
    `checkpoints`: one row each."""
    trials = list(state.trials.values())
    return {
        "trials": _table([_trial(t) for t in trials]),
        "checkpoints": _table(
            [
                {"trial_id": t.trial_id, "attempt": c.attempt, "step": c.step, "path": c.path}
                for t in trials
                for c in t.checkpoints
            ],
            columns=("trial_id", "attempt", "step", "path"),
        ),
    }


def _trial(trial: TrialRecord) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "index": trial.index,
        "run_name": trial.run_name,
        "seed": trial.seed,
        "reference": trial.reference,
        "state": trial.state,
        "step": trial.step,
        "total_steps": trial.total_steps,
        "attempts": trial.attempt,
        "error": trial.error,
        **{_column(k): v for k, v in trial.values.items()},
        **{_column(k): v for k, v in trial.metrics.items()},
        "train_tokens": trial.spent.train_tokens,
        "seconds": trial.spent.seconds,
    }


def _column(key: str) -> str:
    return key.rsplit(".", 1)[-1].replace("/", "_")


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pa.Table:
    names = list(columns) or list(dict.fromkeys(k for row in rows for k in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})
