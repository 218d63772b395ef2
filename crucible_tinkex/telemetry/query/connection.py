"""An in-memory DuckDB that sees the rows of some folders through `views` and nothing else: no
files, no network, no settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from crucible_tinkex.telemetry.query.sources import NOTHING, find_sources
from crucible_tinkex.telemetry.query.views import (
    CHECKPOINTS_VIEW,
    REQUEST_KEYS,
    STEP_TAGS,
    TRIAL_STARTS,
    current_views,
    requests_view,
    rows_view,
    steps_view,
    trial_rows,
)

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


@contextmanager
def connect(
    folders: Path | Sequence[Path],
    *,
    kinds: Collection[str] | None = None,
    sql: str = "",
    tables: Mapping[str, pa.Table] | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """`kinds`: the only ones that the query needs. Of the views that cost a look at the data, those
    are made that `sql` names; `tables` take the place of views of their names."""
    given = dict(tables or {})
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        _add_rows(connection, [folders] if isinstance(folders, Path) else list(folders), kinds)
        for name, table in given.items():
            connection.register(name, table)
        _add_friendly(connection, set(re.findall(r"\w+", sql.lower())) - given.keys())
        for setting in _SETTINGS:
            connection.execute(setting)
        yield connection


def _add_rows(
    connection: duckdb.DuckDBPyConnection, folders: Sequence[Path], kinds: Collection[str] | None
) -> None:
    named: dict[str, list[tuple[list[str], str]]] = {"events": [], "examples": []}
    found = [find_sources(folder, kinds=kinds) for folder in folders] or [NOTHING]
    for number, sources in enumerate(found):
        for sort, tables in (("events", sources.events), ("examples", sources.examples)):
            names = [f"{sort}_{number}_{i}" for i in range(len(tables))]
            for name, table in zip(names, tables, strict=True):
                connection.register(name, table)
            named[sort].append((names, sources.sweep_id))
    connection.execute(rows_view("events_all", named["events"]))
    connection.execute(rows_view("evaluations_all", named["examples"]))
    connection.execute(current_views())


def _add_friendly(connection: duckdb.DuckDBPyConnection, names: set[str]) -> None:
    if "steps" in names:
        tags = [name for (name,) in connection.execute(STEP_TAGS).fetchall()]
        connection.execute(steps_view(tags))
    if "requests" in names:
        found = dict(connection.execute(REQUEST_KEYS).fetchall())
        connection.execute(requests_view(found))
    if "checkpoints" in names:
        connection.execute(CHECKPOINTS_VIEW)
    if "trials" in names:
        connection.register("trials", _trials(connection))


def _trials(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    starts: list[dict[str, Any]] = connection.sql(TRIAL_STARTS).to_arrow_table().to_pylist()
    rows = trial_rows(starts)
    columns = rows[0] if rows else dict.fromkeys(("sweep_id", "trial_id", "run_name", "seed"))
    return pa.table({name: _column([row[name] for row in rows]) for name in columns})


def _column(values: list[Any]) -> Any:
    """Text where the values are of several kinds; whole numbers among others are numbers."""
    present = {type(value) for value in values if value is not None}
    if present <= {int, float} and float in present:
        values = [None if value is None else float(value) for value in values]
    elif len(present) > 1:
        values = [None if value is None else str(value) for value in values]
    return pa.array(values) if present else pa.array(values, type=pa.string())
