"""Evaluations of trained weights that were made after the fact, one file each.

Guarantees: a file holds a whole evaluation or is not there; one that is damaged counts as not
there. Its name is the digest of what decides the numbers: the weights, the rows and how they are
read, and what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible_tinkex.bench.means import Measured
from crucible_tinkex.names import SweepPaths, plain
from crucible_tinkex.registry import SweepState
from crucible_tinkex.storage import make_folder, storage_errors
from crucible_tinkex.storage.files import write_atomic
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.sweep.results.views.tables import joined, query_tables, rows_table
from crucible_tinkex.telemetry.query import query
from crucible_tinkex.training.recipes.recipe import Example

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = "evaluations_after"
"""The table of their rows."""


@dataclass(frozen=True)
class AfterEvaluation:
    """What was found of one trial's weights on one file."""

    key: str
    trial_id: str
    trial: str
    step: int
    checkpoint: str
    """Path of the weights; of the untrained base, its name."""
    data: str
    """The file, as it was given."""
    data_hash: Any
    evaluation: Mapping[str, Any]
    """The section that was asked for."""
    metrics: Mapping[str, Measured]
    rows: Sequence[Example] = field(repr=False)
    cached: bool = False
    """Whether it was measured before."""

    def summary(self) -> dict[str, Any]:
        """JSON values without the rows; keys are only ever added."""
        told = {name: value for name, value in vars(self).items() if name != "rows"}
        metrics = {tag: plain(asdict(value)) for tag, value in self.metrics.items()}
        return {**told, "metrics": metrics, "n": len(self.rows)}


def place(paths: SweepPaths, key: str) -> Path:
    return paths.evaluations_after / f"{key}.json"


def store(paths: SweepPaths, found: AfterEvaluation) -> None:
    """Raises `StorageError`."""
    make_folder(paths.evaluations_after)
    whole = {**found.summary(), "rows": [asdict(example) for example in found.rows]}
    write_atomic(place(paths, found.key), json.dumps(whole).encode())


def load(paths: SweepPaths, key: str) -> AfterEvaluation | None:
    """What was measured before; None if nothing was."""
    return _read(place(paths, key))


def all_of(paths: SweepPaths) -> Iterator[AfterEvaluation]:
    """In the order in which they were made."""
    with storage_errors(paths.evaluations_after):
        files = [(p.stat().st_mtime_ns, p) for p in paths.evaluations_after.glob("*.json")]
    found = (_read(path) for _, path in sorted(files))
    return (evaluation for evaluation in found if evaluation is not None)


def _read(path: Path) -> AfterEvaluation | None:
    try:
        with storage_errors(path):
            raw = path.read_bytes() if path.exists() else b""
        whole = json.loads(raw)
        metrics = {tag: _measured(value) for tag, value in whole["metrics"].items()}
        rows = [Example(**row) for row in whole["rows"]]
        names = ("key", "trial_id", "trial", "step", "checkpoint", "data", "data_hash")
        told = {name: whole[name] for name in names}
        return AfterEvaluation(
            **told, evaluation=whole["evaluation"], metrics=metrics, rows=rows, cached=True
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _measured(value: Mapping[str, Any]) -> Measured:
    known = {name: number for name, number in value.items() if number is not None}
    return Measured(**known)


def tables(paths: SweepPaths, state: SweepState, sql: str) -> dict[str, pa.Table]:
    """What SQL over a sweep sees besides its events: `query_tables`, and `evaluations_after`, which
    is read where the query names it."""
    found = query_tables(state)
    if ROWS in sql.lower():
        found[ROWS] = rows_table(
            [
                {
                    "evaluation": one.key,
                    "trial_id": one.trial_id,
                    "step": one.step,
                    "data": one.data,
                    **asdict(example),
                }
                for one in all_of(paths)
                for example in one.rows
            ]
        )
    return found


def query_sweeps(sweeps: Sequence[SweepPaths], sql: str) -> pa.Table:
    """SQL over a sweep, or over several: then every row has its `sweep_id`. Raises `ConfigError`
    for bad SQL, and where a column holds values of different kinds."""
    states = [read_state(paths) for paths in sweeps]
    found = [tables(paths, state, sql) for paths, state in zip(sweeps, states, strict=True)]
    folders = [paths.events for paths in sweeps]
    if len(sweeps) == 1:
        return query(folders, sql, tables=found[0])
    ids = [s.meta.get("sweep_id", p.root.name) for p, s in zip(sweeps, states, strict=True)]
    return query(folders, sql, tables=joined(ids, found))
