"""The columns of events and of evaluation rows, and their conversion to and from Arrow.

The schema only ever grows by nullable columns; `extra` (JSON) takes what is not worth a column.
`kind` is no column of a part file but the name of its folder (hive style), as a column of both
kinds is refused by pyarrow's and pandas' default readers. Rows of schema 1 have no `run_id`; their
`sweep_id` named the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from crucible_tinkex.events import Event

SCHEMA_VERSION = 2
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
PART_SCHEMA = pa.schema([f for f in _FIELDS if f.name != "kind"])

_EVALUATION_FIELDS: list[Any] = [
    pa.field("time", _TIME, nullable=False),
    pa.field("sweep_id", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("trial_id", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("step", pa.int64()),
    pa.field("example_id", pa.string()),
    pa.field("nll", pa.float64()),
    pa.field("tokens", pa.int32()),
    pa.field("correct", pa.bool_()),
    pa.field("text", pa.string()),
    pa.field("group", pa.string()),
    pa.field("expected", pa.string()),
    pa.field("answers", pa.list_(pa.string())),
    pa.field("scores", pa.map_(pa.string(), pa.float64())),
    pa.field("writer", pa.string(), nullable=False),
    pa.field("seq", pa.int64(), nullable=False),
]
EVALUATION_SCHEMA = pa.schema(_EVALUATION_FIELDS)
_EVENT_NAMES = {"example_id": "name", "nll": "value"}

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
    version = pc.if_else(raw["run_id"].is_null(), 1, SCHEMA_VERSION).cast(pa.int16())
    made = {
        "event_id": pc.binary_join_element_wise(writer, raw["seq"].cast(pa.string()), ":"),
        "time": raw["time_us"].cast(_TIME),
        "schema_version": version,
    }
    columns = [made[n] if n in made else raw[n] for n in EVENT_SCHEMA.names]
    return pa.table(columns, schema=EVENT_SCHEMA)


def events_to_table(events: Sequence[Event]) -> pa.Table:
    return stamp([events_to_batch(events)])


def table_to_events(table: pa.Table) -> list[Event]:
    """The events of a table with the columns of `EVENT_SCHEMA`. Those of schema 1 have an empty
    `sweep_id`, because what they carry there is no sweep's."""
    old: Any = pc.equal(table["schema_version"], pa.scalar(1, pa.int16()))
    columns: dict[str, Any] = {n: table[n] for n in RAW_SCHEMA.names if n != "time_us"}
    columns["sweep_id"] = pc.if_else(old, "", table["sweep_id"])
    columns["run_id"] = pc.coalesce(table["run_id"], table["sweep_id"])
    raw = {name: column.to_pylist() for name, column in columns.items()}
    raw["time_us"] = table["time"].cast(pa.int64()).to_pylist()
    names = list(raw)
    return [Event(**dict(zip(names, row, strict=True))) for row in zip(*raw.values(), strict=True)]


def keys_of(rows: pa.Table) -> list[tuple[str, int]]:
    """`(writer, seq)` of each row, by which it is known."""
    writers: list[Any] = rows["writer"].to_pylist()
    numbers: list[Any] = rows["seq"].to_pylist()
    return list(zip(writers, numbers, strict=True))


def evaluation_rows(examples: pa.Table) -> pa.Table:
    """Events of kind `example` in `EVALUATION_SCHEMA`; a detail of a wrong type becomes null."""
    extras: list[Any] = examples["extra"].to_pylist()
    details = [_details(extra) for extra in extras]
    spread: dict[str, Any] = {
        "tokens": [_typed(d.get("tokens"), int) for d in details],
        "correct": [_typed(d.get("correct"), bool) for d in details],
        **{n: [_typed(d.get(n), str) for d in details] for n in ("text", "group", "expected")},
        "answers": [_texts(d.get("answers")) for d in details],
        "scores": [_scores(d.get("scores")) for d in details],
    }
    columns = [
        pa.array(spread[f.name], type=f.type)
        if f.name in spread
        else examples[_EVENT_NAMES.get(f.name, f.name)]
        for f in EVALUATION_SCHEMA
    ]
    return pa.table(columns, schema=EVALUATION_SCHEMA)


def _details(extra: str) -> dict[str, Any]:
    try:
        details = json.loads(extra)
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind or (isinstance(value, int) and abs(value) >= 2**31):
        return None
    return value


def _texts(value: Any) -> list[str] | None:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else None


def _scores(value: Any) -> list[tuple[str, float]] | None:
    if not isinstance(value, dict):
        return None
    return [(k, float(v)) for k, v in value.items() if isinstance(v, int | float)]
