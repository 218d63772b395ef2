"""What a storage folder remembers of its experiments: the seed's `Telemetry.query`, windows over
time or count, aggregates, export, and `subscribe` for what still comes.

The original's query matched nothing (it compared integers with dates, and said so to nobody), its
runs held each other's events, and its standard deviation divided by n. Here a time is a time, rows
carry their experiment, and std is that of a sample (n - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.bridge.catalogue import FACTS, Handler, stored_kinds
from crucible_tinkex.telemetry.export import Format, write_table
from crucible_tinkex.telemetry.facts.fact import bridge_of
from crucible_tinkex.telemetry.facts.reading import fact_rows
from crucible_tinkex.telemetry.log.parts import EXAMPLE
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.telemetry.query.reading import utc
from crucible_tinkex.telemetry.subscription import Subscription

QUANTILES = {"p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


class Telemetry:
    """The events of every experiment and sweep below one folder. Every call reads them afresh."""

    def __init__(self, storage: str | Path = "runs") -> None:
        self._storage = Path(storage)

    def query(
        self,
        *,
        experiment_id: str | None = None,
        event_type: str | Sequence[str] | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        name: str | None = None,
        trial_id: str | None = None,
    ) -> pa.Table:
        """Rows by time, in the columns of the event log.

        `event_type` is one of the seed's (`training_step`, `optimizer_step`, `checkpoint`,
        `session`, `forward_backward_stop`, ...), a kind of ours, or a fact of the storage
        (`model_promoted`, `checkpoint_pruned`, `dataset_loaded`, ...). `from_` is inclusive, `to`
        exclusive; a time without zone is UTC. Raises `ConfigError` for an unknown type, and for a
        folder that is not there.
        """
        for which, moment in (("from_", from_), ("to", to)):
            if not isinstance(moment, datetime | None):
                raise ConfigError(f"{which} = {moment!r} must be a datetime")
        if from_ is not None and to is not None and utc(from_) > utc(to):
            raise ConfigError(f"from_ {from_} is later than to {to}")
        own = self._own(experiment_id)
        folders: Any = self._folders() if own is None else own
        kinds = [*_kinds(event_type)]
        tables = [
            read_events(
                folders,
                experiment_id=experiment_id if own is None else None,
                kind=kind,
                trial_id=trial_id,
                name=name,
                since=from_,
                until=to,
            )
            for kind in kinds
            if kind not in FACTS
        ]
        wanted = FACTS if None in kinds else [kind for kind in kinds if kind in FACTS]
        if wanted:
            equal = {"experiment_id": experiment_id, "trial_id": trial_id, "name": name}
            facts = fact_rows(self._storage, wanted, experiment_id)
            tables.append(_filtered(facts, equal, from_, to))
        return pa.concat_tables(tables).sort_by([("time", "ascending"), ("seq", "ascending")])

    def attach(
        self, handler_id: str, handler: Handler, events: Sequence[str] | None = None
    ) -> None:
        """Call `handler` for what this process does to models, checkpoints, artifacts and datasets
        of the storage (None: all of that), and for what the sessions do of sweeps that this process
        runs from now on, here or on Ray. Raises `ConfigError` for an id that is taken, and for an
        unknown event."""
        bridge_of(self._storage).attach(handler_id, handler, events)

    def detach(self, handler_id: str) -> bool:
        """Whether it was attached."""
        return bridge_of(self._storage).detach(handler_id)

    def subscribe(
        self,
        experiment_id: str,
        *,
        event_type: str | Sequence[str] | None = None,
        wait_s: float = 0.0,
        lives: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Subscription:
        """The events of an experiment or sweep as they come, also while it runs elsewhere.

        `experiment_id` names its folder; `event_type` is as for `query`; `options` are those of
        `Subscription`: `name`, `trial_id`, `after` (a cursor), `replay`, `poll_s`. Raises
        `ConfigError` for an unknown type, and for a folder that is not there and not awaited.
        """
        kinds = None if event_type is None else [k for k in _kinds(event_type) if k is not None]
        if kinds and EXAMPLE in kinds:
            raise ConfigError("rows of evaluations are no events: read them with `evaluations()`")
        if kinds and (facts := [kind for kind in kinds if kind in FACTS]):
            raise ConfigError(f"{facts[0]} is in no sweep's event log: `attach` hears of it")
        paths = SweepPaths.of(self._storage, experiment_id)
        if not wait_s and lives is None and not paths.root.is_dir():
            raise ConfigError(
                f"there is no experiment {experiment_id!r} in {self._storage}; give wait_s to wait "
                "for it"
            )
        return Subscription(paths, kinds=kinds, wait_s=wait_s, lives=lives, **options)

    def window(
        self,
        *,
        last: int | timedelta | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        **filters: Any,
    ) -> pa.Table:
        """The newest `last` rows, those of the `last` time before the newest row (or before `to`),
        or those from `from_` to `to`; `filters` are those of `query`."""
        if isinstance(last, int) and last < 0:
            raise ConfigError(f"last = {last} must be a number of rows")
        found = self.query(from_=from_, to=to, **filters)
        if isinstance(last, int):
            return found.slice(max(0, found.num_rows - last))
        if last is None or not found.num_rows:
            return found
        end = utc(to) if to is not None else pc.max(found["time"]).as_py()
        return found.filter(pc.greater(found["time"], pa.scalar(end - last, found["time"].type)))

    def aggregate(self, *, by: Sequence[str] = ("name",), **filters: Any) -> list[dict[str, Any]]:
        """Count, mean, std (n - 1; None of one), min, max, p50, p75, p95, p99, first and last of
        the values, for each combination of the columns `by`."""
        return aggregated(self.window(**filters), by)

    def windowed(
        self, *, every: timedelta, by: Sequence[str] = ("name",), **filters: Any
    ) -> list[dict[str, Any]]:
        """`aggregate` of each stretch of time; `window_start` says which. Empty ones are left
        out."""
        if every <= timedelta(0):
            raise ConfigError(f"every = {every} must be a positive time")
        found = self.window(**filters)
        if not found.num_rows:
            return []
        width = every // timedelta(microseconds=1)
        ticks = pc.cast(found["time"], pa.int64())
        start = pc.multiply(pc.divide(ticks, width), width)
        found = found.append_column("window_start", pc.cast(start, found["time"].type))
        return aggregated(found, ["window_start", *by])

    def export(self, path: str | Path, *, format: Format | None = None, **filters: Any) -> int:
        """Write the rows of `window` to a file; how many there were. `format` by default as the
        file is named: csv, jsonl or parquet."""
        found = self.window(**filters)
        write_table(found, path, format=format)
        return int(found.num_rows)

    def experiments(self) -> list[str]:
        """Folders with events, by name."""
        return sorted(folder.parent.name for folder in self._folders())

    def _own(self, experiment_id: str | None) -> Path | None:
        """The events of the experiment (or sweep) whose folder has this name."""
        own = self._storage / (experiment_id or "") / "events"
        return own if experiment_id and own.is_dir() else None

    def _folders(self) -> list[Path]:
        if not self._storage.is_dir():
            raise ConfigError(f"there is no storage folder {self._storage}")
        return sorted(f for f in self._storage.glob("*/events") if f.is_dir())


def aggregated(table: pa.Table, by: Sequence[str]) -> list[dict[str, Any]]:
    """Statistics of `value` for each combination of `by`, in the order of their first rows."""
    unknown = [column for column in by if column not in table.column_names]
    if unknown:
        raise ConfigError(
            f"there is no column {', '.join(unknown)}; there are {', '.join(table.column_names)}"
        )
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in table.select([*by, "value"]).to_pylist():
        if row["value"] is not None:
            groups.setdefault(tuple(row[column] for column in by), []).append(row["value"])
    return [
        {**dict(zip(by, key, strict=True)), **_statistics(values)} for key, values in groups.items()
    ]


def _statistics(values: Sequence[float]) -> Mapping[str, Any]:
    array = np.asarray(values, np.float64)
    return {
        "count": len(values),
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(values) > 1 else None,
        "min": float(array.min()),
        "max": float(array.max()),
        **{name: float(np.quantile(array, q)) for name, q in QUANTILES.items()},
        "first": values[0],
        "last": values[-1],
    }


def _kinds(event_type: str | Sequence[str] | None) -> Iterable[str | None]:
    if event_type is None:
        return [None]
    names = [event_type] if isinstance(event_type, str) else event_type
    return dict.fromkeys(kind for name in names for kind in stored_kinds(name))


def _filtered(
    table: pa.Table, equal: Mapping[str, str | None], since: datetime | None, until: datetime | None
) -> pa.Table:
    kept = pc.scalar(True)
    begin: Any = since and utc(since)
    end: Any = until and utc(until)
    for column, value in equal.items():
        if value is not None:
            kept = kept & (pc.field(column) == pc.scalar(value))
    if begin is not None:
        kept = kept & (pc.field("time") >= pc.scalar(begin))
    if end is not None:
        kept = kept & (pc.field("time") < pc.scalar(end))
    return table.filter(kept)
