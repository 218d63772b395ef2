"""The values in a data file with the line of each, one at a time, whatever holds them.

JSON Lines, a JSON array, CSV and TSV (with a header), each also gzipped, and Parquet. Text is
UTF-8, with or without a byte order mark, and lines may end in CRLF. A file of a million rows is
never in memory at once, except a JSON array, which cannot be parsed in parts.

Every fault is a `DataError` that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets.rows import place
from crucible_tinkex.errors import DataError

_SEPARATORS = (";", "\t", "|", ",")
"""Of tables that say by their names that they have another."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_PARQUET_BATCH = 1024


def values(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of `file`, which error messages call `name`."""
    kind = kind_of(name)
    if kind == ".parquet":
        yield from _parquet(file, name)
    elif kind == ".json":
        yield from _array(file, name)
    elif kind in (".csv", ".tsv"):
        yield from _table(file, name, delimiter="," if kind == ".csv" else "\t")
    else:
        yield from _json_lines(file, name)


def kind_of(name: str) -> str:
    """The suffix that says what holds the rows. Raises `DataError` if it is none of `SUFFIXES`."""
    lower = name.lower()
    kind = next((s for s in SUFFIXES if lower.removesuffix(".gz").endswith(s)), None)
    if kind is None or (kind == ".parquet" and lower.endswith(".gz")):
        raise DataError(
            f"{name}: unknown kind of file; give .jsonl, .json, .csv or .tsv (also .gz), or "
            ".parquet"
        )
    return kind


def type_name(value: Any) -> str:
    """The type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value == []:
        return "an empty list"
    return "null" if value is None else names.get(type(value), "a number")


def _json_lines(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(_lines(file, name), 1):
        where = place(name, line)
        text = _decode(raw, where).strip()
        if text:
            yield line, _parse(text, where, fix="each line must be one whole JSON object")


def _array(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    text = _decode(b"".join(_lines(file, name)), name)
    if not text.strip():
        return
    value = _parse(text, name, fix="a file with one object per line must be named .jsonl")
    if not isinstance(value, list):
        raise DataError(f"{name}: expected a JSON array of rows, found {type_name(value)}")
    yield from enumerate(value, 1)


def _table(file: Path, name: str, *, delimiter: str) -> Iterator[tuple[int, Any]]:
    lines = _lines(file, name)
    decoded = (_decode(raw, place(name, line)) for line, raw in enumerate(lines, 1))
    reader = csv.reader(decoded, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{place(name, line)}: malformed CSV: {error}; put a cell that holds quotes or "
                'line breaks in "...", its quotes doubled'
            ) from error
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = _header(cells, place(name, line))
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{place(name, line)}: {len(cells)} cells under a header of {len(header)} columns "
                f'({", ".join(header)}); put a cell that holds a separator in "..."'
            )
        yield line, dict(zip(header, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((cell for cell in header if header.count(cell) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the column {twice!r} stands twice in the header; rename one")
    if len(header) == 1 and (other := next((c for c in _SEPARATORS if c in header[0]), None)):
        raise DataError(
            f"{where}: the header {header[0]!r} is one column, separated by {other!r}; save the "
            "file with commas as .csv, or with tabs as .tsv"
        )
    return header


def _parquet(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    # Costs 0.1 s; most data are JSON Lines.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            line = 0
            for batch in table.iter_batches(_PARQUET_BATCH):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: the file cannot be read as Parquet: {error}") from error


def _lines(file: Path, name: str) -> Iterator[bytes]:
    # Bytes, because text mode would hide the line on which a file stops being UTF-8.
    first = True
    try:
        with gzip.open(file, "rb") if name.lower().endswith(".gz") else file.open("rb") as lines:
            for line in lines:
                yield line.removeprefix(_BOM) if first else line
                first = False
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name}: the file cannot be read: {reason}") from error


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
            "save the file as UTF-8"
        ) from error


def _parse(text: str, where: str, *, fix: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno} column {error.colno}"
            if error.lineno > 1
            else (f"column {error.colno}")
        )
        raise DataError(f"{where}: malformed JSON at {at}: {error.msg}; {fix}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: malformed JSON: {error}; {fix}") from error


def json_cells(value: dict[str, Any], keys: Iterable[str], where: str) -> dict[str, Any]:
    """A row of a CSV file whose cells `keys`, where they are there, hold JSON."""
    parsed = {
        key: _parse(value[key], f"{where}: {key!r}", fix="the cell must hold JSON")
        for key in keys
        if isinstance(value.get(key), str) and value[key].lstrip().startswith(("[", "{"))
    }
    return {**value, **parsed}
