"""Merges part files, so that neither a long sweep nor one that was resumed often has thousands.

Parts of a kind are kept at sizes that fall like a geometric series, so there are few of them and
each row is written again only a few times. A merged part appears whole before its sources go, and
while both are there it alone counts (`parts.list_parts`), so a crash at any point loses and doubles
nothing. Sources are verified before. Parts of version 0.1.0 are rewritten into today's form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from crucible_tinkex.storage import fsync_folder, storage_errors
from crucible_tinkex.telemetry.log.parts import (
    ROW_GROUP_ROWS,
    Part,
    coverage_of,
    list_parts,
    part_tables,
    remove_part,
    write_part,
)
from crucible_tinkex.telemetry.log.sequences import SequenceSet

FANOUT = 8
"""So many small parts of a kind may lie side by side."""
FULL_BYTES = 16 * 1024 * 1024
"""A part of this size is left alone."""


def compact(folder: Path, *, through: int, full_bytes: int = FULL_BYTES) -> int:
    """Merge what is due among the parts of segments up to `through`; return the parts written."""
    parts = [part for part in list_parts(folder) if part.last <= through]
    written = 0
    for _, of_kind in groupby(sorted(parts, key=lambda p: (p.kind, p.first)), lambda p: p.kind):
        for group in _due(list(of_kind), full_bytes):
            _merge(folder, group)
            written += 1
    return written


def _due(parts: Sequence[Part], full_bytes: int) -> Iterator[list[Part]]:
    """Which neighbours become one."""
    old = [part for part in parts if part.crc is None]
    if old:
        yield from _filled(old, full_bytes)
        return
    sizes = [part.size for part in parts]
    small = next((i + 1 for i in reversed(range(len(sizes))) if sizes[i] >= full_bytes), 0)
    if len(parts) - small < FANOUT:
        return
    for start in range(small, len(parts) - 1):
        if sizes[start] <= sum(sizes[start + 1 :]):
            yield list(parts[start:])
            return


def _filled(parts: Sequence[Part], full_bytes: int) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        if group and sum(p.size for p in group) + part.size > full_bytes:
            yield group
            group = []
        group.append(part)
    yield group


def _merge(folder: Path, parts: Sequence[Part]) -> None:
    with storage_errors(parts[0].path):
        merged = _write_merged(folder, parts)
    for part in parts:
        if part.path != merged.path:
            remove_part(part)
    with storage_errors(merged.path):
        fsync_folder(merged.path.parent)


def _write_merged(folder: Path, parts: Sequence[Part]) -> Part:
    coverage = SequenceSet()
    for part in parts:
        coverage.update(coverage_of(part))
    first, last = parts[0].first, parts[-1].last
    rows, covered = _row_groups(parts), coverage.to_json()
    return write_part(folder, parts[0].kind, first, last, rows, covered)


def _row_groups(parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The rows of all parts, gathered into tables of a good size."""
    waiting: list[pa.Table] = []
    for part in parts:
        for table in part_tables(part):
            waiting.append(table)
            if sum(t.num_rows for t in waiting) >= ROW_GROUP_ROWS:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
