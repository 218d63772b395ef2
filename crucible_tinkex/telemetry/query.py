"""Reading the events of a running or finished sweep: a filter with a Python face, and SQL.

Every acknowledged event is seen exactly once, whether it is in Parquet or still in the write-ahead
log: segments are read first, and the parts that carry the number of a segment so read are left out.
Reading takes no lock and never disturbs the writer; Parquet is streamed, not loaded.

Two views. `events_all` is everything. `events` is the current one: of what describes a state of the
model (`attempts.CURVE_KINDS`) it leaves out the rows of an attempt that a newer attempt of the same
trial replaced. Those are the rows at a step after the one that the newer attempt resumed from (its
`session_start` says so in `extra.resumed_step`), and the rows for which the newer attempt has one
of the same kind, name and step. What happened and stays true (requests made, states passed through,
sessions) is always part of it. SQL can read these views and nothing else: no files, no network, no
settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.storage import segment_number, segments
from crucible_tinkex.telemetry.attempts import CURVE_KINDS, resumed_step
from crucible_tinkex.telemetry.latest import wait_of
from crucible_tinkex.telemetry.parquet import EVENT_SCHEMA, list_parts, part_number, stamp
from crucible_tinkex.telemetry.wal import read_wal, wal_folder

_VIEWS = f"""
CREATE VIEW events_all AS SELECT * FROM parquet_rows UNION ALL SELECT * FROM wal_rows;
CREATE VIEW newest_rows AS
    SELECT trial_id, kind, name, step, max(attempt) AS attempt FROM events_all
    WHERE trial_id IN (
        SELECT trial_id FROM events_all WHERE trial_id <> ''
        GROUP BY trial_id HAVING max(attempt) > min(attempt))
    GROUP BY ALL;
CREATE VIEW events AS SELECT e.* FROM events_all e
    LEFT JOIN last_steps l ON l.trial_id = e.trial_id AND l.attempt = e.attempt
    LEFT JOIN newest_rows n ON n.trial_id = e.trial_id AND n.kind = e.kind
        AND n.name = e.name AND n.step = e.step
    WHERE e.kind NOT IN {CURVE_KINDS}
        OR (e.step <= coalesce(l.step, e.step) AND e.attempt >= coalesce(n.attempt, e.attempt));
"""
_SETTINGS = (
    "SET TimeZone = 'UTC'",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET lock_configuration = true",
)
_LAST_STEPS: list[Any] = [
    pa.field("trial_id", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("step", pa.int64()),
]
_READABLE = (
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT is one
)
_NEWEST_WAITS = """
SELECT trial_id, name, extra FROM (
    SELECT * FROM events WHERE kind IN ('queue_state', 'session_start', 'session_end')
    QUALIFY row_number() OVER (PARTITION BY trial_id ORDER BY attempt DESC, time DESC, seq DESC) = 1
) WHERE kind = 'queue_state'
"""
_ORDER = ", ".join(("time", "writer", "seq"))


def read_events(
    folder: Path,
    *,
    kind: str | None = None,
    trial_id: str | None = None,
    name: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    all_attempts: bool = False,
) -> pa.Table:
    """The events of an `events` folder in `EVENT_SCHEMA`, by time.

    `since` is inclusive, `until` exclusive; a time without zone is UTC. `all_attempts` gives also
    the rows that a newer attempt replaced. No folder or no event: an empty table.
    """
    conditions: dict[str, Any] = {
        "kind = ?": kind,
        "trial_id = ?": trial_id,
        "name = ?": name,
        "time >= ?": _utc(since),
        "time < ?": _utc(until),
    }
    wanted = {text: value for text, value in conditions.items() if value is not None}
    sql = (
        f"SELECT {', '.join(EVENT_SCHEMA.names)} FROM {'events_all' if all_attempts else 'events'} "
        f"WHERE {' AND '.join(wanted) or 'true'} ORDER BY {_ORDER}"
    )
    with _connect(folder, kind=kind) as connection:
        table: pa.Table = connection.sql(sql, params=list(wanted.values())).to_arrow_table()
    return table.cast(EVENT_SCHEMA)


def query(folder: Path, sql: str) -> pa.Table:
    """Run one SELECT over `events` and `events_all`. Raises `ConfigError` with DuckDB's words."""
    with _connect(folder) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in _READABLE:
                raise ConfigError("a query must be exactly one SELECT statement; it cannot write")
            answer: pa.Table = connection.sql(sql).to_arrow_table()
            return answer
        except duckdb.Error as e:
            raise ConfigError(f"the query failed: {e}") from e


def waiting(folder: Path) -> dict[str, dict[str, Any]]:
    """What the service keeps trials waiting for, by trial id: `state`, `reason`, `resume_at`."""
    newest = query(folder, _NEWEST_WAITS).to_pylist()
    waits = {row["trial_id"]: wait_of(row["name"], row["extra"]) for row in newest}
    return {trial_id: wait for trial_id, wait in waits.items() if wait is not None}


def scan_events(folder: Path, *, kind: str | None = None, rows: int = 50_000) -> Iterator[pa.Table]:
    """All attempts, in tables of at most `rows`, ordered by trial, attempt and time."""
    sql = (
        f"SELECT {', '.join(EVENT_SCHEMA.names)} FROM events_all "
        f"WHERE kind = coalesce(?, kind) ORDER BY trial_id, attempt, {_ORDER}"
    )
    with _connect(folder, kind=kind) as connection:
        relation = connection.sql(sql, params=[kind])
        for batch in relation.to_arrow_reader(rows):
            yield pa.Table.from_batches([batch]).cast(EVENT_SCHEMA)


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


@contextmanager
def _connect(folder: Path, *, kind: str | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that sees one snapshot of the events and can reach nothing else."""
    wal, parts = _snapshot(folder)
    if kind is not None:
        keep = {f"kind={kind}", "kind=session_start"}  # the latter says what is superseded
        parts = [path for path in parts if path.parent.name in keep]
    parquet: Any = EVENT_SCHEMA.empty_table()
    if parts:
        parquet = ds.dataset(parts, schema=EVENT_SCHEMA, format="parquet")
    with duckdb.connect(":memory:") as connection:
        connection.register("parquet_rows", parquet)
        connection.register("wal_rows", wal)
        connection.register("last_steps", _last_steps(parts, wal))
        connection.execute(_VIEWS)
        for setting in _SETTINGS:
            connection.execute(setting)
        yield connection


def _snapshot(folder: Path) -> tuple[pa.Table, list[Path]]:
    """What the write-ahead log holds, and the parts that hold everything else.

    In this order: a segment that is rolled meanwhile was either read, and its parts do not count,
    or was gone already, and its parts are complete.
    """
    batches: list[pa.RecordBatch] = []
    read = set()
    for path in segments(wal_folder(folder)):
        found = read_wal(path)
        if found:
            batches += found
            read.add(segment_number(path))
    parts = [path for path in list_parts(folder) if part_number(path) not in read]
    return stamp(batches), parts


def _last_steps(parts: list[Path], wal: pa.Table) -> pa.Table:
    """For every attempt that was resumed later: the last of its steps that still counts."""
    starts = [p for p in parts if p.parent.name == "kind=session_start"]
    columns = ["kind", "trial_id", "attempt", "extra"]
    tables = [wal.filter(pc.field("kind") == "session_start").select(columns)]
    if starts:
        stored = ds.dataset(starts, schema=EVENT_SCHEMA, format="parquet")
        tables.append(stored.to_table(columns=columns))
    last: dict[tuple[str, int], int] = {}
    for row in pa.concat_tables(tables).to_pylist():
        step = resumed_step(row["extra"])
        if row["trial_id"] and step is not None:
            for older in range(row["attempt"]):
                key = (row["trial_id"], older)
                last[key] = min(step, last.get(key, step))
    rows = [{"trial_id": t, "attempt": a, "step": step} for (t, a), step in last.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(_LAST_STEPS))
