"""A table as a file: CSV, JSON lines or Parquet; the old file stays until the new one is whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.storage import write_atomic

Format = Literal["csv", "jsonl", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def write_table(table: pa.Table, path: str | Path, *, format: Format | None = None) -> None:
    """Replace `path`. Raises `ConfigError` where neither `format` nor the name says what to write,
    and `StorageError` where it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    write_atomic(path, encoded(table, format or _by_name(path)))


def encoded(table: pa.Table, format: Format) -> bytes:
    """The file's bytes. Times are ISO 8601 in text formats; nested values are JSON in CSV."""
    if format not in get_args(Format):
        raise ConfigError(f"unknown format {format!r}; use one of {', '.join(get_args(Format))}")
    sink = io.BytesIO()
    if format == "parquet":
        pyarrow.parquet.write_table(table, sink)
    elif format == "csv":
        pyarrow.csv.write_csv(_flat(table), sink)
    else:
        for row in table.to_pylist():
            sink.write(json.dumps(row, default=_text).encode() + b"\n")
    return sink.getvalue()


def _by_name(path: Path) -> Format:
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(f"{path}: name it .csv, .jsonl or .parquet, or give the format")
    return found


def _flat(table: pa.Table) -> pa.Table:
    """CSV has no lists and no tables within a cell."""
    columns = [
        pa.array([None if v is None else json.dumps(v, default=_text) for v in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
