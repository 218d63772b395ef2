"""A sweep's trials, checkpoints and conclusions as Arrow tables: for SQL, pandas and Polars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import plain
from crucible_tinkex.registry import SweepState, TrialRecord

if TYPE_CHECKING:
    from crucible_tinkex.bench import Comparison, Conclusion

_DECLARED = (
    "trial_id",
    "index",
    "run_name",
    "seed",
    "reference",
    "phase",
    "state",
    "step",
    "total_steps",
)
_EVALUATED: Mapping[str, Any] = {
    **dict.fromkeys(("evaluation", "trial_id", "data", "example_id"), pa.string()),
    **dict.fromkeys(("text", "group", "expected"), pa.string()),
    "step": pa.int64(),
    "nll": pa.float64(),
    "tokens": pa.int64(),
    "correct": pa.bool_(),
    "answers": pa.list_(pa.string()),
    "scores": pa.map_(pa.string(), pa.float64()),
}
_CONCLUDED: Mapping[str, Any] = {
    "name": pa.string(),
    **dict.fromkeys(("value", "value_low", "value_high", "mean"), pa.float64()),
    **dict.fromkeys(("behind_by", "low", "high", "p_always", "p"), pa.float64()),
    **dict.fromkeys(("separable", "good_enough"), pa.bool_()),
    **dict.fromkeys(("seeds", "shared"), pa.int64()),
    "why": pa.string(),
}
_ADDED = ("parent", "forked_at", "attempts", "error", "train_tokens", "seconds")


def query_tables(state: SweepState) -> dict[str, pa.Table]:
    """`trials`: one row each, with a column per hyperparameter and metric, named with underscores;
    `checkpoints`: one row each."""
    trials = list(state.trials.values())
    heads = _heads({key for t in trials for key in t.values})
    return {
        "trials": _table([_trial(t, heads) for t in trials]),
        "checkpoints": _table(
            [
                {"trial_id": t.trial_id, "attempt": c.attempt, "step": c.step, "path": c.path}
                for t in trials
                for c in t.checkpoints
            ],
            columns=("trial_id", "attempt", "step", "path"),
        ),
    }


def joined(
    sweep_ids: Sequence[str], found: Sequence[Mapping[str, pa.Table]]
) -> dict[str, pa.Table]:
    """The tables of several sweeps as one of each name, with a column `sweep_id`. Raises
    `ConfigError` where a column holds numbers here and text there."""
    return {name: _joined(name, sweep_ids, [tables[name] for tables in found]) for name in found[0]}


def _joined(name: str, sweep_ids: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    parts = []
    for sweep_id, table in zip(sweep_ids, tables, strict=True):
        column = pa.array([sweep_id] * table.num_rows, pa.string())
        parts.append(table.add_column(0, "sweep_id", column))
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ConfigError(f"{name} of these sweeps cannot be one table: {error}") from None


def conclusion_table(found: Conclusion) -> pa.Table:
    """A row for each configuration: the leader, its rivals with the best first, and those that do
    not compete, with why. `value`, `value_low`, `value_high`: the leader's, corrected for its
    having been chosen; `mean` is not. `behind_by`, `low`, `high`: of the others to it."""
    rows: list[dict[str, Any]] = [plain(asdict(rival)) for rival in found.rivals]
    if found.leader is not None:
        value = plain(asdict(found.value)) if found.value else {}
        told: dict[str, Any] = {"value": value.get("value"), "seeds": value.get("seeds")}
        told |= {"value_low": value.get("low"), "value_high": value.get("high")}
        told |= {"mean": found.mean, "behind_by": 0.0, "good_enough": True}
        rows.insert(0, {"name": found.leader, **told})
    rows += [{"name": one.name, "why": one.reason} for one in found.left_out]
    return pa.table({n: pa.array([r.get(n) for r in rows], t) for n, t in _CONCLUDED.items()})


def comparison_table(found: Comparison) -> pa.Table:
    """One row."""
    return _table([found.to_dict()])


def _trial(trial: TrialRecord, heads: Mapping[str, str]) -> dict[str, Any]:
    return {
        **{name: getattr(trial, name) for name in _DECLARED},
        "parent": trial.origin.parent if trial.origin else None,
        "forked_at": trial.origin.step if trial.origin and trial.origin.warm else None,
        "attempts": trial.attempt,
        "error": trial.error,
        **{heads[key]: value for key, value in trial.values.items()},
        **{name.replace("/", "_"): value for name, value in trial.metrics.items()},
        "train_tokens": trial.spent.train_tokens,
        "seconds": trial.spent.seconds,
    }


def _heads(keys: Collection[str]) -> dict[str, str]:
    """A column per hyperparameter: the last part of its key, or all of it where that would be
    another column's name."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    taken = Counter([*last.values(), *_DECLARED, *_ADDED])
    return {k: k.replace(".", "_") if taken[name] > 1 else name for k, name in last.items()}


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pa.Table:
    names = list(columns) or list(dict.fromkeys(k for row in rows for k in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def rows_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Evaluation rows, `scores` as a map; without rows, the columns that a query may name."""
    names = list(dict.fromkeys([*(_EVALUATED if not rows else ()), *(k for r in rows for k in r)]))
    return pa.table({n: pa.array([r.get(n) for r in rows], type=_EVALUATED.get(n)) for n in names})
