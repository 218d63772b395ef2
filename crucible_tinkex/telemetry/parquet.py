"""The Parquet form of events: schema, conversion to and from Arrow, part files of one event kind.

Guarantees: a part file appears whole or not at all and is never changed afterwards; writing the
same batch number again replaces it by the same rows; every part carries the full schema, and what
it holds, as key-value metadata. The schema only ever grows by nullable columns; `extra` (JSON)
takes what is not worth a column. `kind` is a column and the hive folder too, so that a single file
explains itself. Not here: durability of single events (`log`), reading (`query`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.storage import fsync_folder, write_atomic
from crucible_tinkex.version import VERSION

SCHEMA_VERSION = 2
ROW_GROUP_ROWS = 122_880
_TIME = pa.timestamp("us", tz="UTC")

_FIELDS: list[Any] = [
    pa.field("event_id", pa.string(), nullable=False),
    pa.field("time", _TIME, nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("sweep_id", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("experiment_id", pa.string()),
    pa.field("trial_id", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("step", pa.int64()),
    pa.field("epoch", pa.int32()),
    pa.field("name", pa.string()),
    pa.field("value", pa.float64()),
    pa.field("extra", pa.string()),
    pa.field("writer", pa.string(), nullable=False),
    pa.field("seq", pa.int64(), nullable=False),
    pa.field("schema_version", pa.int16()),
]
EVENT_SCHEMA = pa.schema(_FIELDS)
_STAMPED = ("event_id", "time", "schema_version")  # made from the other columns

RAW_SCHEMA = pa.schema(
    [pa.field("time_us", pa.int64()), *(f for f in _FIELDS if f.name not in _STAMPED)]
)
"""An event as it was handed in; the write-ahead log stores this."""

_columns = attrgetter(*RAW_SCHEMA.names)


def events_to_batch(events: Sequence[Event]) -> pa.RecordBatch:
    """The events as they are, in `RAW_SCHEMA`. Raises `ValueError` for a value of a wrong type."""
    columns = zip(*map(_columns, events), strict=True) if events else ([] for _ in RAW_SCHEMA)
    try:
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(columns, RAW_SCHEMA, strict=True)
        ]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
        raise ValueError(f"an event has a field of the wrong type: {e}") from e
    return pa.record_batch(arrays, schema=RAW_SCHEMA)


def stamp(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Raw batches as one table in `EVENT_SCHEMA`."""
    raw = pa.Table.from_batches(list(batches), schema=RAW_SCHEMA)
    writer: Any = raw["writer"]
    made = {
        "event_id": pc.binary_join_element_wise(writer, raw["seq"].cast(pa.string()), ":"),
        "time": raw["time_us"].cast(_TIME),
        "schema_version": pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int16()), raw.num_rows),
    }
    columns = [made[n] if n in made else raw[n] for n in EVENT_SCHEMA.names]
    return pa.table(columns, schema=EVENT_SCHEMA)


def events_to_table(events: Sequence[Event]) -> pa.Table:
    return stamp([events_to_batch(events)])


def table_to_events(table: pa.Table) -> list[Event]:
    """The events of a table with the columns of `EVENT_SCHEMA`."""
    raw = {n: table[n].to_pylist() for n in RAW_SCHEMA.names if n != "time_us"}
    raw["time_us"] = table["time"].cast(pa.int64()).to_pylist()
    names = list(raw)
    return [Event(**dict(zip(names, row, strict=True))) for row in zip(*raw.values(), strict=True)]


def part_path(folder: Path, kind: str, number: int) -> Path:
    """Where batch `number` (the number of its write-ahead segment) keeps its events of `kind`."""
    return folder / f"kind={kind}" / f"part-{number:06d}.parquet"


def part_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))


def list_parts(folder: Path, *, kind: str | None = None) -> list[Path]:
    """Every part file below an `events` folder, oldest batch first."""
    return sorted(folder.glob(f"kind={kind or '*'}/part-*.parquet"), key=part_number)


def write_parts(
    folder: Path, table: pa.Table, *, number: int, metadata: Mapping[str, Any]
) -> list[Path]:
    """Write one part per kind. Not atomic as a whole: repeat it with the same arguments."""
    paths = []
    for kind in sorted(_distinct(table["kind"])):
        path = part_path(folder, kind, number)
        new_folder = not path.parent.exists()
        _write_part(path, table.filter(pc.field("kind") == kind), metadata)
        if new_folder:
            fsync_folder(folder)
        paths.append(path)
    return paths


def _write_part(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    about = {
        "version": VERSION,
        "schema": SCHEMA_VERSION,
        "rows": table.num_rows,
        "sweep_id": pc.max(table["sweep_id"]).as_py(),
        "first_time": pc.min(table["time"]).as_py().isoformat(),
        "last_time": pc.max(table["time"]).as_py().isoformat(),
        **metadata,
    }
    entries = {f"crucible.{key}": _text(value) for key, value in about.items()}
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(entries),
        buffer,
        compression="zstd",
        compression_level=3,
        row_group_size=ROW_GROUP_ROWS,
        write_page_index=True,
    )
    write_atomic(path, buffer.getvalue().to_pybytes())


def _distinct(column: Any) -> list[str]:
    texts: list[str] = pc.unique(column).to_pylist()
    return texts


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def read_metadata(path: Path) -> dict[str, str]:
    """The part's `crucible.*` entries without that prefix; `StorageError` when unreadable."""
    try:
        entries = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as e:
        raise StorageError(f"{path} is not a readable Parquet file: {e}") from e
    return {
        key.decode().removeprefix("crucible."): value.decode()
        for key, value in entries.items()
        if key.startswith(b"crucible.")
    }
