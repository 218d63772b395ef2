"""Part files: `kind=<kind>/part-<segment>.<crc>.parquet`, and `../evaluations/` for examples.

Guarantees: a part appears whole or not at all and is never changed afterwards; it is named by the
write-ahead segments that it holds (`000003`, merged `000001-000003`) and by the CRC-32 of all its
bytes, so no flipped bit in data, footer or statistics goes unnoticed (Parquet's own page checksums,
written for other readers, cover the pages only). Of parts of one folder whose segments are
contained in another's, the wider one counts. Parts of version 0.1.0 have no CRC in the name.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.storage import fsync_folder, storage_errors, write_atomic
from crucible_tinkex.telemetry.log.schema import (
    EVALUATION_SCHEMA,
    EVENT_SCHEMA,
    PART_SCHEMA,
    SCHEMA_VERSION,
    evaluation_rows,
)
from crucible_tinkex.version import VERSION

EXAMPLE = "example"
ROW_GROUP_ROWS = 122_880
_NAME = re.compile(r"part-(\d{6,})(?:-(\d{6,}))?(?:\.([0-9a-f]{8}))?\.parquet")


@dataclass(frozen=True)
class Part:
    """A part file; `first` and `last` are the write-ahead segments that it holds."""

    path: Path
    kind: str
    first: int
    last: int
    crc: int | None
    """None: written by version 0.1.0, which had none."""

    @property
    def size(self) -> int:
        with storage_errors(self.path):
            return self.path.stat().st_size

    @property
    def key(self) -> str:
        """The name within the sweep: folder and file."""
        return f"{self.path.parent.name}/{self.path.name}"

    def holds(self, first: int, last: int) -> bool:
        return self.first <= first and last <= self.last


def evaluations_folder(folder: Path) -> Path:
    """Beside the `events` folder."""
    return folder.parent / "evaluations"


def kind_folder(folder: Path, kind: str) -> Path:
    return evaluations_folder(folder) if kind == EXAMPLE else folder / f"kind={kind}"


def all_parts(folder: Path) -> list[Part]:
    """Every part file of an `events` folder and the evaluations beside it, oldest first."""
    events, examples = folder.glob("kind=*/part-*.parquet"), evaluations_folder(folder)
    parts = map(parse_part, [*events, *examples.glob("part-*.parquet")])
    return sorted(parts, key=lambda p: (p.first, -p.last, p.kind, p.crc is None, p.path.name))


def parse_part(path: Path) -> Part:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CorruptLogError(f"{path} is not a part that this log wrote; move it elsewhere")
    first, last, crc = match.groups()
    folder = path.parent.name
    kind = folder.removeprefix("kind=") if folder.startswith("kind=") else EXAMPLE
    return Part(path, kind, int(first), int(last or first), int(crc, 16) if crc else None)


def list_parts(folder: Path) -> list[Part]:
    """The parts that count: without those that a merged part contains."""
    reached: dict[str, int] = {}
    current = []
    for part in all_parts(folder):
        if part.last > reached.get(part.kind, 0):
            reached[part.kind] = part.last
            current.append(part)
    return current


def load_part(part: Part) -> pa.Buffer:
    """The verified bytes, mapped: they stay readable when the file is removed.

    Raises `FileNotFoundError` when it was removed before, `StorageError` that names it otherwise.
    """
    try:
        data: pa.Buffer = pa.memory_map(str(part.path)).read_buffer()
        if part.crc is None:
            pq.read_table(pa.BufferReader(data))  # all that tells damage there
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as e:
        raise CorruptLogError(f"{part.path} cannot be read: {e}. {_ADVICE}") from e
    if part.crc is not None and zlib.crc32(data) != part.crc:
        raise CorruptLogError(
            f"{part.path} is damaged: its checksum is not that of its name. {_ADVICE}"
        )
    return data


_ADVICE = "Restore it from a copy, or remove it to go on without its rows"


def read_events_part(part: Part) -> pa.Table:
    """The events of a part in `EVENT_SCHEMA`."""
    rows = pa.concat_tables(list(part_tables(part)))
    kind = pa.repeat(pa.scalar(part.kind), rows.num_rows)
    return rows.append_column("kind", kind).select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)


def part_tables(part: Part) -> Iterator[pa.Table]:
    """The rows in pieces of at most `ROW_GROUP_ROWS`, in the columns of this version's files."""
    schema = EVALUATION_SCHEMA if part.kind == EXAMPLE else PART_SCHEMA
    file = pq.ParquetFile(pa.BufferReader(load_part(part)))
    yield schema.empty_table()
    for batch in file.iter_batches(ROW_GROUP_ROWS):
        rows = pa.Table.from_batches([batch])
        columns = [
            rows[f.name] if f.name in rows.schema.names else pa.nulls(rows.num_rows, f.type)
            for f in schema
        ]
        yield pa.table(columns, schema=schema)


def metadata_of(data: pa.Buffer) -> dict[str, str]:
    """A part's `crucible.*` entries without that prefix."""
    entries = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    return {
        key.decode().removeprefix("crucible."): value.decode()
        for key, value in entries.items()
        if key.startswith(b"crucible.")
    }


def write_parts(
    folder: Path, table: pa.Table, *, number: int, coverage: Mapping[str, Any]
) -> list[Part]:
    """Write the events of segment `number`, one part per kind. Not atomic as a whole: repeat it
    with the same arguments."""
    parts = []
    kinds: list[Any] = pc.unique(table["kind"]).to_pylist()
    for kind in sorted(kinds):
        rows = table.filter(pc.field("kind") == kind)
        rows = evaluation_rows(rows) if kind == EXAMPLE else rows.drop_columns(["kind"])
        parts.append(write_part(folder, kind, number, number, [rows], coverage))
    return parts


def write_part(
    folder: Path,
    kind: str,
    first: int,
    last: int,
    tables: Iterable[pa.Table],
    coverage: Mapping[str, Any],
) -> Part:
    """Write one part. `tables` have the columns of a file of that kind."""
    schema = EVALUATION_SCHEMA if kind == EXAMPLE else PART_SCHEMA
    about = _About()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=3,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            about.add(table)
        entries = {"kind": kind, "segments": [first, last], "coverage": coverage, **about.entries()}
        writer.add_key_value_metadata({f"crucible.{k}": _text(v) for k, v in entries.items()})
    data = sink.getvalue()
    crc = zlib.crc32(data)
    numbers = f"{first:06d}" if first == last else f"{first:06d}-{last:06d}"
    place = kind_folder(folder, kind)
    new_folder = not place.exists()
    path = place / f"part-{numbers}.{crc:08x}.parquet"
    write_atomic(path, data.to_pybytes())
    if new_folder:
        with storage_errors(place):
            fsync_folder(place.parent)
    return Part(path, kind, first, last, crc)


class _About:
    """What a part tells of itself, gathered from its rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._times: list[Any] = []
        self._sweep = self._older_sweep = ""

    def add(self, table: pa.Table) -> None:
        if table.num_rows == 0:
            return
        self._rows += table.num_rows
        self._times += [pc.min(table["time"]).as_py(), pc.max(table["time"]).as_py()]
        new = table.filter(pc.is_valid(table["run_id"]))
        old = table.filter(pc.is_null(table["run_id"]))
        self._sweep = self._sweep or pc.max(new["sweep_id"]).as_py() or ""
        self._older_sweep = self._older_sweep or pc.min(old["sweep_id"]).as_py() or ""

    def entries(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "schema": SCHEMA_VERSION,
            "rows": self._rows,
            "sweep_id": self._sweep,
            "older_sweep_id": self._older_sweep,
            "first_time": min(self._times).isoformat() if self._times else "",
            "last_time": max(self._times).isoformat() if self._times else "",
        }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def coverage_of(part: Part) -> dict[str, Any]:
    """The `(writer, seq)` that the segments of a part hold, of all kinds."""
    covered: dict[str, Any] = json.loads(metadata_of(load_part(part)).get("coverage", "{}"))
    return covered


def remove_part(part: Part) -> None:
    with storage_errors(part.path):
        part.path.unlink(missing_ok=True)
