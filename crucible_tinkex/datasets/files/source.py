"""All rows of a data set, read as often as they are asked for and never held at once.

`open_rows` reads every row once, so that every fault shows before anything is spent, and keeps 8
bytes of each: a key of its content, by which rows are split off for evaluation and compared with
those of another file. Going through `Rows` reads the files again; one that changed in between is
refused.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.files.address import Address
from crucible_tinkex.datasets.files.catalogue import CATALOGUE
from crucible_tinkex.datasets.files.containers import kind_of, values
from crucible_tinkex.datasets.files.flattened import whole_claims
from crucible_tinkex.datasets.files.formats import FORMATS_HELP, Reader, detect, row_of
from crucible_tinkex.datasets.files.published import (
    has_evidence,
    read_corpus,
    with_corpus,
)
from crucible_tinkex.datasets.files.remote import fetched, is_remote
from crucible_tinkex.datasets.order import Segment
from crucible_tinkex.datasets.rows import Format, Row
from crucible_tinkex.errors import DataError

Keys = npt.NDArray[np.uint64]
LOOKED_AFTER, SHOWN_LINES = 10_000, 5
"""Rows after one that is refused, and how many of those that are refused, too, are named."""


@dataclass(frozen=True)
class DataFile:
    """One file as it was declared."""

    path: str
    weight: float = 1.0
    """How often an epoch shows each of its rows."""


@dataclass(frozen=True, eq=False)
class RowFile:
    """A file whose rows were all read once."""

    declared: DataFile
    address: Address
    local: Path
    """Where it lies; the same, but for a file that was fetched."""
    format: Format
    corpus: Path | None
    keys: Keys
    """Of its rows, in their order."""
    named: bool
    """Whether any row has an id of its own."""
    passed_over: int
    """Claims without evidence (`scifact`)."""
    taken: npt.NDArray[np.bool_]
    """Which of the rows were asked for."""
    state: tuple[int, int]

    def rows(self) -> Iterator[Row]:
        """Raises `DataError` if the file is not what it was."""
        if _state(self.local) != self.state:
            raise DataError(
                f"{self.declared.path}: the file changed while it was in use; run it again"
            )
        readers, place = _readers(self.corpus), self.address.place
        found = whole_claims(values(self.local, place))
        if self.format == "scifact":
            found = ((line, value) for line, value in found if has_evidence(value))
        for line, value in islice(found, len(self.keys)):
            yield row_of(value, self.format, readers, path=place, line=line)


@dataclass(frozen=True, eq=False)
class Rows(Collection[Row]):
    """The rows of one file or more; a row of a later file comes after all rows of an earlier."""

    files: Sequence[RowFile]
    chosen: Sequence[npt.NDArray[np.bool_]]
    """Which rows of each file belong to it."""

    def __len__(self) -> int:
        return sum(int(chosen.sum()) for chosen in self.chosen)

    def __contains__(self, row: object) -> bool:
        return isinstance(row, Row) and bool(np.isin(np.uint64(row.key), self.keys))

    def __iter__(self) -> Iterator[Row]:
        for _, rows in self.groups():
            yield from rows

    def groups(self) -> Iterator[tuple[float, Iterator[Row]]]:
        """Weight and rows of each file."""
        for file, chosen in zip(self.files, self.chosen, strict=True):
            rows = zip(file.rows(), chosen, strict=True)
            yield file.declared.weight, (row for row, taken in rows if taken)

    @cached_property
    def keys(self) -> Keys:
        """Of all rows (`Row.key`), in their order."""
        pairs = zip(self.files, self.chosen, strict=True)
        return np.concatenate([file.keys[chosen] for file, chosen in pairs])

    @property
    def epoch_rows(self) -> int:
        """Rows that one epoch shows."""
        pairs = zip(self.files, self.chosen, strict=True)
        counts = ((int(chosen.sum()), file.declared.weight) for file, chosen in pairs)
        return sum(Segment.weighted(*count).drawn for count in counts)

    @property
    def formats(self) -> list[Format]:
        """Of each file."""
        return [file.format for file in self.files]

    @property
    def named(self) -> bool:
        return any(file.named for file in self.files)

    def where(self, taken: npt.NDArray[np.bool_]) -> Rows:
        """The rows at which `taken`, one for each row, is true."""
        parts, start = [], 0
        for chosen in self.chosen:
            part, count = chosen.copy(), int(chosen.sum())
            part[chosen] = taken[start : start + count]
            parts.append(part)
            start += count
        return replace(self, chosen=parts)

    def shared_with(self, other: Rows) -> int:
        """How many rows of `other` also occur here, white space and case aside."""
        return int(np.isin(other.keys, self.keys).sum())


def open_rows(
    files: Iterable[DataFile | str | Path],
    *,
    format: Format | None = None,
    corpus: str | Path | None = None,
) -> Rows:
    """Read and check every row of `files`. Without a `format`, the first row of each file decides
    it. `corpus`: of SciFact's claims, by default `corpus.jsonl` beside them. Raises `DataError`.
    """
    opened = [
        _opened(file if isinstance(file, DataFile) else DataFile(str(file)), format, corpus)
        for file in files
    ]
    return Rows(opened, [file.taken for file in opened])


def read_rows(
    path: str | Path, *, format: Format | None = None, corpus: str | Path | None = None
) -> list[Row]:
    """All rows of a file that is small enough to hold, never none. See `open_rows`."""
    return list(open_rows([DataFile(str(path))], format=format, corpus=corpus))


def _opened(declared: DataFile, format: Format | None, corpus: str | Path | None) -> RowFile:
    address = Address.parse(declared.path)
    name, choice, labels = address.place, address.choice, list[str]()
    if format is not None and format not in get_args(Format):
        legal = ", ".join(get_args(Format))
        raise DataError(f"{name}: there is no data format {format!r}; choose one of {legal}")
    local = _local(name)
    state = _state(local)
    keys, named, passed_over = array("Q"), False, 0
    readers, corpus_path = _readers(None), None
    found_values = whole_claims(values(local, name))
    for line, value in found_values:
        if not keys and not passed_over:
            format = format or detect(value, readers, path=name, line=line)
            corpus_path = (
                _corpus_of(name, corpus or address.corpus) if format == "scifact" else None
            )
            readers = _readers(corpus_path)
        assert format is not None
        if format == "scifact" and not has_evidence(value):
            passed_over += 1
            continue
        try:
            row = row_of(value, format, readers, path=name, line=line)
        except DataError as error:
            rest = found_values if choice.limit is None and format != "scifact" else ()
            more = _refused(rest, partial(row_of, format=format, readers=readers, path=name))
            raise DataError(f"{error.message}{more}") from error
        keys.append(row.key)
        named = named or row.id is not None
        if choice.stratify is not None:
            labels.append(_label(value, choice.stratify, row))
        if len(keys) == choice.limit:
            break
    if not keys or format is None:
        raise DataError(f"{name}: the file has no rows; {FORMATS_HELP}")
    found = np.frombuffer(keys, np.uint64)
    taken = choice.taken(len(found), labels)
    return RowFile(
        declared, address, local, format, corpus_path, found, named, passed_over, taken, state
    )


def _refused(rest: Iterable[tuple[int, Any]], row: Callable[..., Row]) -> str:
    """How many of the next rows are refused, too, so that they are mended at once; nothing where
    none is. A file is not read to its end for that."""
    looked, lines = 0, list[int]()
    with contextlib.suppress(DataError):  # of a line that is none; it is told when it is the first
        for line, value in islice(rest, LOOKED_AFTER):
            looked += 1
            try:
                row(value, line=line)
            except DataError:
                lines.append(line)
    if not lines:
        return ""
    shown = ", ".join(map(str, lines[:SHOWN_LINES])) + (", ..." if lines[SHOWN_LINES:] else "")
    return f" ({len(lines):,} of the {looked:,} rows after it are refused, too: {shown})"


def _label(value: Mapping[str, Any], key: str, row: Row) -> str:
    if key not in value:
        known = ", ".join(repr(name) for name in value)
        raise DataError(f"{row.where}: stratify names the key {key!r}, and the row has {known}")
    return str(value[key])


def _readers(corpus: Path | None) -> Mapping[Format, Reader]:
    if corpus is None:
        return with_corpus({}, "")
    return with_corpus(read_corpus(corpus, str(corpus)), str(corpus))


def _corpus_of(claims: str, corpus: str | Path | None) -> Path:
    if corpus is not None:
        return _local(str(corpus))
    folder = claims.rpartition("/")[0] if is_remote(claims) else os.path.dirname(claims)
    beside = f"{folder}/corpus.jsonl" if folder else "corpus.jsonl"
    if not is_remote(beside) and not Path(beside).exists():
        raise DataError(
            f"{claims}: SciFact's claims quote a corpus, and there is no {beside}; put it there or "
            "set data.corpus"
        )
    return _local(beside)


def _local(name: str) -> Path:
    """The file, fetched if it must be, checked to be one that can be read."""
    if is_remote(name):
        kind_of(name)
        return fetched(name)
    file = Path(name)
    if file.is_dir():
        raise DataError(f"{name}: this is a folder; name a file in it")
    if not file.exists():
        short = "" if file.suffix else f"; short names are {', '.join(CATALOGUE)}"
        raise DataError(
            f"{name}: no such file; paths in an experiment file start from its folder{short}"
        )
    kind_of(name)
    return file


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns
