"""Reading the events of running or finished sweeps: a filter with a Python face, and SQL.

Reading takes no lock and never disturbs the writer. A folder is a sweep's `events`; several give
the rows of all, told apart by `sweep_id`. What the views hold is said in `views`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.telemetry.latest import wait_of
from crucible_tinkex.telemetry.log.parts import EXAMPLE
from crucible_tinkex.telemetry.log.schema import EVALUATION_SCHEMA, EVENT_SCHEMA
from crucible_tinkex.telemetry.query.connection import connect
from crucible_tinkex.telemetry.query.views import quoted

Folders = Path | Sequence[Path]

_READABLE = (
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT is one
)
_NEWEST_WAITS = """
SELECT trial_id, name, extra FROM (
    SELECT * FROM events WHERE kind IN ('queue_state', 'session_start', 'session_end')
    QUALIFY row_number() OVER (
        PARTITION BY sweep_id, trial_id ORDER BY attempt DESC, time DESC, seq DESC) = 1
) WHERE kind = 'queue_state'
"""
_ORDER = "time, writer, seq"
_STARTS = "session_start"  # says what is superseded


def read_events(
    folders: Folders,
    *,
    kind: str | None = None,
    trial_id: str | None = None,
    name: str | None = None,
    experiment_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    all_attempts: bool = False,
) -> pa.Table:
    """The events in `EVENT_SCHEMA`, by time.

    `since` is inclusive, `until` exclusive; a time without zone is UTC. `all_attempts` gives also
    the rows that a newer attempt replaced. No folder or no event: an empty table.
    """
    conditions: dict[str, Any] = {
        "kind = ?": kind,
        "trial_id = ?": trial_id,
        "name = ?": name,
        "experiment_id = ?": experiment_id,
        "time >= ?": since and utc(since),
        "time < ?": until and utc(until),
    }
    view = "events_all" if all_attempts else "events"
    return _select(folders, view, EVENT_SCHEMA, conditions, None if kind is None else {kind})


def read_evaluations(
    folders: Folders,
    trial_id: str | None = None,
    step: int | None = None,
    *,
    all_attempts: bool = False,
) -> pa.Table:
    """The per-example rows behind the evaluations, in `EVALUATION_SCHEMA`, by time."""
    conditions = {"trial_id = ?": trial_id, "step = ?": step}
    view = "evaluations_all" if all_attempts else "evaluations"
    return _select(folders, view, EVALUATION_SCHEMA, conditions, {EXAMPLE})


def _select(
    folders: Folders,
    view: str,
    schema: pa.Schema,
    conditions: Mapping[str, Any],
    kinds: set[str] | None,
) -> pa.Table:
    wanted = {text: value for text, value in conditions.items() if value is not None}
    sql = (
        f"SELECT {', '.join(quoted(name) for name in schema.names)} FROM {view} "
        f"WHERE {' AND '.join(wanted) or 'true'} ORDER BY {_ORDER}"
    )
    with connect(folders, kinds=kinds and {*kinds, _STARTS}) as connection:
        table: pa.Table = connection.sql(sql, params=list(wanted.values())).to_arrow_table()
    return table.cast(schema)


def query(folders: Folders, sql: str, *, tables: Mapping[str, pa.Table] | None = None) -> pa.Table:
    """Run one SELECT over the views `events`, `events_all`, `steps`, `evaluations`,
    `evaluations_all`, `trials`, `checkpoints` and `requests`; `tables` replace views by name or add
    to them. Columns of one name (a join's, or `select step, *`) are told apart as in DuckDB's own
    tables: `step`, `step_1`. Raises `ConfigError` with DuckDB's words."""
    with connect(folders, sql=sql, tables=tables) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in _READABLE:
                raise ConfigError("a query must be exactly one SELECT statement; it cannot write")
            return _told_apart(connection.sql(sql).to_arrow_table())
        except duckdb.Error as e:
            raise ConfigError(f"the query failed: {e}") from e


def _told_apart(table: pa.Table) -> pa.Table:
    """Rows as dicts, JSON and readers of Parquet know a column by its name alone."""
    given: list[str] = table.column_names
    used: set[str] = set()
    names = []
    for name in given:
        forms = chain([name], (f"{name}_{number}" for number in count(1)))
        names.append(next(form for form in forms if form.lower() not in used))
        used.add(names[-1].lower())
    return table.rename_columns(names)


def waiting(folder: Path) -> dict[str, dict[str, Any]]:
    """What the service keeps trials waiting for, by trial id: `state`, `reason`, `resume_at`."""
    newest = query(folder, _NEWEST_WAITS).to_pylist()
    waits = {row["trial_id"]: wait_of(row["name"], row["extra"]) for row in newest}
    return {trial_id: wait for trial_id, wait in waits.items() if wait is not None}


def scan_events(
    folder: Path, *, trial_ids: Collection[str] | None = None, rows: int = 50_000
) -> Iterator[pa.Table]:
    """All attempts, in tables of at most `rows`, ordered by trial, attempt and time."""
    condition = "true" if trial_ids is None else "list_contains(?, trial_id)"
    sql = (
        f"SELECT {', '.join(EVENT_SCHEMA.names)} FROM events_all "
        f"WHERE {condition} ORDER BY trial_id, attempt, {_ORDER}"
    )
    with connect(folder) as connection:
        params = [] if trial_ids is None else [list(trial_ids)]
        for batch in connection.sql(sql, params=params).to_arrow_reader(rows):
            yield pa.Table.from_batches([batch]).cast(EVENT_SCHEMA)


def utc(moment: datetime) -> datetime:
    """A time without zone is UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
