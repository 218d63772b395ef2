"""What an `events` folder holds at one moment, found without a lock while its log goes on.

Every acknowledged event is in it exactly once, whether it lies in Parquet or still in the
write-ahead log: segments are read first, and the parts that hold a segment so read are left out.
Parts are mapped into memory and verified, so compaction may remove them meanwhile, and damage is
named before a query sees it. Parquet is streamed from there, not loaded.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import segment_number, segments
from crucible_tinkex.telemetry.log.parts import (
    EXAMPLE,
    Part,
    list_parts,
    load_part,
    metadata_of,
)
from crucible_tinkex.telemetry.log.schema import (
    EVALUATION_SCHEMA,
    EVENT_SCHEMA,
    evaluation_rows,
    stamp,
)
from crucible_tinkex.telemetry.log.wal import read_wal, wal_folder

_TRIES = 200


@dataclass(frozen=True)
class Sources:
    """Arrow tables and data sets; `events` and `examples` have rows of disjoint kinds."""

    events: tuple[Any, ...]
    examples: tuple[Any, ...]
    sweep_id: str
    """Of the rows of schema 1, which carry the id of a run in its place."""


NOTHING = Sources((EVENT_SCHEMA.empty_table(),), (EVALUATION_SCHEMA.empty_table(),), "")


def find_sources(folder: Path, *, kinds: Collection[str] | None = None) -> Sources:
    """`kinds`: the only ones whose parts are wanted (None: all).

    Raises `CorruptLogError` that names a damaged file.
    """
    for _ in range(_TRIES):
        found = _try(folder, kinds)
        if found is not None:
            return found
        time.sleep(0.01)
    raise StorageError(f"{folder} changed all the time while it was read; try again")


def _try(folder: Path, kinds: Collection[str] | None) -> Sources | None:
    """None when the log was rolled or compacted in a way that the listing may have missed.

    A segment that is rolled meanwhile was either read, and its parts do not count, or was gone
    already, and its parts are complete.
    """
    batches: list[pa.RecordBatch] = []
    read = set()
    for path in segments(wal_folder(folder)):
        found = read_wal(path)
        if found:
            batches += found
            read.add(segment_number(path))
    listed = list_parts(folder)
    parts = [part for part in listed if not (part.first == part.last and part.first in read)]
    if any(part.holds(number, number) for part in parts for number in read):
        return None  # rolled and merged since
    wanted = [part for part in parts if kinds is None or part.kind in kinds]
    try:
        loaded = {part: load_part(part) for part in wanted}
    except FileNotFoundError:
        return None
    horizon = max([0, *(part.last for part in listed), *read])
    if any(p.last <= horizon and p.first not in read for p in set(list_parts(folder)) - {*listed}):
        return None
    return _as_sources(loaded, stamp(batches))


def _as_sources(loaded: Mapping[Part, pa.Buffer], wal: pa.Table) -> Sources:
    is_example = pc.field("kind") == EXAMPLE
    events = {part: data for part, data in loaded.items() if part.kind != EXAMPLE}
    examples = {part: data for part, data in loaded.items() if part.kind == EXAMPLE}
    return Sources(
        events=(_dataset(events, EVENT_SCHEMA), wal.filter(~is_example)),
        examples=(
            _dataset(examples, EVALUATION_SCHEMA),
            evaluation_rows(wal.filter(is_example)),
        ),
        sweep_id=_sweep_of_old_rows(list(events.values()), wal),
    )


def _dataset(loaded: Mapping[Part, pa.Buffer], schema: pa.Schema) -> Any:
    if not loaded:
        return schema.empty_table()
    form = ds.ParquetFileFormat()
    fragments = [
        form.make_fragment(
            cast(Any, data),
            partition_expression=None if part.kind == EXAMPLE else ds.field("kind") == part.kind,
        )
        for part, data in loaded.items()
    ]
    return ds.FileSystemDataset(fragments, schema, form)


def _sweep_of_old_rows(parts: Sequence[pa.Buffer], wal: pa.Table) -> str:
    """The id that newer rows of the folder carry, else one of those that the old rows do."""
    told = [_told(metadata_of(data)) for data in parts]
    old = wal.filter(pc.is_null(wal["run_id"]))["sweep_id"]
    new = wal.filter(pc.is_valid(wal["run_id"]))["sweep_id"]
    told.append((pc.max(new).as_py() or "", pc.min(old).as_py() or ""))
    ids = [sweep for sweep, _ in told if sweep] + [older for _, older in told if older]
    return ids[0] if ids else ""


def _told(about: Mapping[str, str]) -> tuple[str, str]:
    sweep = about.get("sweep_id", "")
    return ("", sweep) if about.get("schema") == "1" else (sweep, about.get("older_sweep_id", ""))
