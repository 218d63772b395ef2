"""`crucible query`: SQL over sweeps, as a table that a terminal can show, or as JSON."""

from __future__ import annotations

import json as json_module
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible_tinkex.cli.terminal.tables import SHOWN_ROWS, plain_table, print_rows
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.sweep.results.views.summary import existing_sweep
from crucible_tinkex.telemetry.export import Format, encoded, write_table
from crucible_tinkex.weights.evaluations import query_sweeps

if TYPE_CHECKING:
    import pyarrow as pa


def show_query(sweep: str, sql: str, *, storage: str, json: bool, limit: int | None) -> None:
    """Print at most `limit` rows (None: `SHOWN_ROWS` in a table, all as JSON; 0: all)."""
    found = _asked(sweep, sql, storage, limit)
    shown = found.slice(0, limit) if limit else found
    if json:
        print(json_module.dumps(shown.to_pylist(), default=str))
        return
    if limit is None:
        shown = found.slice(0, SHOWN_ROWS)
    _print_rows(shown)
    if shown.num_rows < found.num_rows:
        print(
            f"{shown.num_rows} of {found.num_rows} rows; all: --limit 0, or --json",
            file=sys.stderr,
        )


def export_query(
    sweep: str,
    sql: str,
    *,
    storage: str,
    format: Format | None,
    output: Path | None,
    limit: int | None,
) -> None:
    """Write the rows to `output`, or to stdout."""
    found = _asked(sweep, sql, storage, limit)
    rows = found.slice(0, limit) if limit else found
    if output is not None:
        write_table(rows, output, format=format)
        print(f"{rows.num_rows} rows in {output}", file=sys.stderr)
        return
    if format == "parquet":
        raise ConfigError("--format parquet needs a file: -o FILE")
    sys.stdout.buffer.write(encoded(rows, format or "jsonl"))
    sys.stdout.buffer.flush()


def _asked(sweep: str, sql: str, storage: str, limit: int | None) -> pa.Table:
    if limit is not None and limit < 0:
        raise ConfigError(f"--limit {limit}: give a number of rows, or 0 for all")
    return query_sweeps([existing_sweep(storage, name) for name in sweep.split(",")], sql)


def _print_rows(found: pa.Table) -> None:
    names: list[str] = found.column_names
    values = found.to_pylist()
    rows = [[_text(v) for v in row.values()] for row in values]
    table = plain_table()
    for name in names:
        is_text = any(isinstance(row[name], str | datetime) for row in values)
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_rows(table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
