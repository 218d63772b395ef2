"""From rows to a `TokenisedDataset`, a few hundred rows at a time.

Rows come from files and go into columns; neither texts nor lists of tokens of a whole data set are
ever in memory. Texts are encoded in batches, on all cores.

`too_long` says what becomes of a row over `max_length`. By default a text is cut, which loses only
its end, and any other row is refused, because it would lose what is to be learnt. `truncate` cuts
every row from the right, and leaves out one that has nothing to learn after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.column import Column
from crucible_tinkex.datasets.files.source import Rows
from crucible_tinkex.datasets.order import Segment
from crucible_tinkex.datasets.rows import Chat, PromptCompletion, Row, Text, TrainOn
from crucible_tinkex.datasets.tokens.tokenised import TokenisedDataset
from crucible_tinkex.errors import DataError

if TYPE_CHECKING:
    from crucible_tinkex.datasets.tokens.tokenizer import Tokenizer

TooLong = Literal["refuse", "truncate", "drop"]
_AT_ONCE = 256
_NONE = np.zeros(0, np.int64)


class _Part(NamedTuple):
    """A piece of a row: a text, or ids that need no encoding."""

    text: str
    learnt: bool
    ids: tuple[int, ...] = ()
    turn: bool = False
    """An assistant's: generation stops at its end of sequence, so nothing after that is learnt."""


class _Example(NamedTuple):
    tokens: list[int]
    mask: list[int]
    prompt_length: int
    learnt_bytes: int
    learnt_text: str
    """The text of what is learnt last, which begins at `prompt_length`."""


def tokenise(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    train_on: TrainOn = "all_assistant",
    too_long: TooLong | None = None,
    keep_text: bool = False,
) -> TokenisedDataset:
    """Encode all rows; `max_length` counts every token of a row with its end-of-sequence token.
    `keep_text`: also keep what token-weight schemes need (`TokenisedDataset.text`).

    Raises `DataError` for a row that is refused, and if no row is left.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length must be at least 2, not {max_length}")
    making = _Making(tokenizer, max_length, train_on, too_long, _Names(rows), keep_text)
    segments = []
    with contextlib.closing(making):
        for weight, group in _groups(rows):
            before = making.rows
            making.add(group)
            segments.append(Segment.weighted(making.rows - before, weight))
        return making.finish(tuple(segments))


def _groups(rows: Iterable[Row]) -> Iterable[tuple[float, Iterable[Row]]]:
    return rows.groups() if isinstance(rows, Rows) else [(1.0, rows)]


@dataclass
class _Making:
    """The columns so far, and what happened to rows that were too long."""

    tokenizer: Tokenizer
    max_length: int | None
    train_on: TrainOn
    too_long: TooLong | None
    names: _Names
    keep_text: bool = False
    rows: int = 0
    tokens: Column = field(default_factory=lambda: Column(np.int32))
    mask: Column = field(default_factory=lambda: Column(np.uint8))
    ids: Column = field(default_factory=lambda: Column(np.uint8))
    groups: Column = field(default_factory=lambda: Column(np.uint8))
    spans: Column = field(default_factory=lambda: Column(np.int32))
    about: Column = field(default_factory=lambda: Column(np.uint8))
    about_lengths: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    group_lengths: array[int] = field(default_factory=lambda: array("q"))
    id_lengths: array[int] = field(default_factory=lambda: array("q"))
    prompt_lengths: array[int] = field(default_factory=lambda: array("i"))
    learnt_bytes: array[int] = field(default_factory=lambda: array("i"))
    truncated: int = 0
    dropped: int = 0
    seen: int = 0
    plain_text: bool = False
    refused: list[tuple[str, int]] = field(default_factory=list)
    """Where the first row that is refused stands, with its length."""
    refusals: int = 0
    longest: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        remaining = iter(rows)
        while chunk := list(islice(remaining, _AT_ONCE)):
            for row, example in zip(chunk, self._encode(chunk), strict=True):
                self.seen += 1
                fitting = self._fitted(row, example)
                if fitting is not None:
                    self._keep(row, fitting)

    def finish(self, segments: tuple[Segment, ...]) -> TokenisedDataset:
        self._raise_refused()
        if not self.seen:
            raise DataError("the dataset has no rows")
        if not self.rows:
            raise DataError(
                f"all {self.seen} rows are over max_length = {self.max_length} and were dropped; "
                "raise train.max_length"
            )
        tokens, mask = self.tokens.finish(), self.mask.finish()
        offsets = _offsets(self.lengths)
        prompt_lengths = np.frombuffer(self.prompt_lengths.tobytes(), np.int32)
        return TokenisedDataset(
            tokens=tokens,
            mask=mask,
            offsets=offsets,
            prompt_lengths=prompt_lengths,
            ids=self.ids.finish(),
            id_offsets=_offsets(self.id_lengths),
            groups=self.groups.finish(),
            group_offsets=_offsets(self.group_lengths),
            learnt_bytes=np.frombuffer(self.learnt_bytes.tobytes(), np.int32),
            spans=self.spans.finish(),
            about=self.about.finish(),
            about_offsets=_offsets(self.about_lengths) if self.keep_text else _NONE,
            eos_id=self.tokenizer.eos_id,
            truncated=self.truncated,
            dropped=self.dropped,
            has_prompts=not self.plain_text,
            fingerprint=_hash(tokens, mask, offsets, prompt_lengths),
            segments=segments if any(s.rows != s.drawn for s in segments) else (),
        )

    def close(self) -> None:
        for column in (self.tokens, self.mask, self.ids, self.groups, self.spans, self.about):
            column.close()

    def _keep(self, row: Row, example: _Example) -> None:
        self.rows += 1
        self.plain_text = self.plain_text or isinstance(row, Text)
        self.tokens.extend(example.tokens)
        self.mask.extend(example.mask)
        self.lengths.append(len(example.tokens))
        self.prompt_lengths.append(example.prompt_length)
        self.learnt_bytes.append(example.learnt_bytes)
        name = self.names.of(row)
        self.ids.extend(name)
        self.id_lengths.append(len(name))
        group = (row.group or "").encode()
        self.groups.extend(group)
        self.group_lengths.append(len(group))
        if self.keep_text:
            self._keep_text(row, example)

    def _keep_text(self, row: Row, example: _Example) -> None:
        completion = row.completion_text
        about = {
            "row": {**row.fields, **row.notes},
            "notes": dict(row.notes),
            "completion": completion,
        }
        raw = json.dumps(about, default=str).encode()
        self.about.extend(raw)
        self.about_lengths.append(len(raw))
        shift = max(0, example.learnt_text.find(completion))  # a template may put something before
        offsets = self.tokenizer.inner.encode(example.learnt_text, add_special_tokens=False).offsets
        spans = np.full((len(example.tokens), 2), -1, np.int32)
        place = spans[example.prompt_length : example.prompt_length + len(offsets)]
        place[:] = np.asarray(offsets[: len(place)], np.int32).reshape(-1, 2) - shift
        self.spans.extend(spans.ravel().tolist())

    def _fitted(self, row: Row, example: _Example) -> _Example | None:
        """The row as it is kept; None if it is not."""
        length, limit = len(example.tokens), self.max_length
        if limit is None or length <= limit:
            return example
        policy = self.too_long or ("truncate" if isinstance(row, Text) else "refuse")
        if policy == "refuse":
            self.refused = self.refused or [(row.where, length)]
            self.refusals += 1
            self.longest = max(self.longest, length)
            return None
        cut = self._cut(example, limit) if policy == "truncate" else None
        if cut is None:
            self.dropped += 1
        else:
            self.truncated += 1
        return cut

    def _cut(self, example: _Example, limit: int) -> _Example | None:
        tokens, mask = example.tokens[:limit], example.mask[:limit]
        if not any(mask[max(1, example.prompt_length) :]):
            return None
        learnt = [token for token, is_learnt in zip(tokens, mask, strict=True) if is_learnt]
        size = len(self.tokenizer.decode(learnt).encode())
        return _Example(tokens, mask, example.prompt_length, size, example.learnt_text)

    def _raise_refused(self) -> None:
        for where, length in self.refused:
            raise DataError(
                f"{where}: the row has {length} tokens, over max_length = {self.max_length} "
                f"({self.refusals} of {self.seen} rows are too long); shorten or remove them, set "
                f"max_length to {self.longest}, or set data.too_long to drop or truncate them"
            )

    def _encode(self, rows: list[Row]) -> Iterator[_Example]:
        parts = [self._parts(row) for row in rows]
        texts = [part.text for row in parts for part in row if part.text]
        encoded = iter(self.tokenizer.encode_all(texts))
        for row, pieces in zip(rows, parts, strict=True):
            ids = [next(encoded) if part.text else list(part.ids) for part in pieces]
            example = self._join(pieces, ids)
            if not any(example.mask[1:]):
                raise DataError(
                    f"{row.where}: the tokenizer leaves nothing to learn; remove the row"
                )
            yield example

    def _parts(self, row: Row) -> list[_Part]:
        prefix = _Part("", False, self.tokenizer.prefix)
        end = _Part("", True, (self.tokenizer.eos_id,))
        if isinstance(row, PromptCompletion):
            prompt = _Part(row.prompt, self.train_on == "everything")
            return [prefix, prompt, _Part(row.completion, True), end]
        if isinstance(row, Text):
            return [prefix, _Part(row.text, True), end]
        if isinstance(row, Chat):
            try:
                parts = self.tokenizer.chat_parts(row.messages, train_on=self.train_on)
            except DataError as error:
                raise DataError(f"{row.where}: {error.message}") from error
            turns = [i for i, (_, learnt) in enumerate(parts) if learnt]
            turns = turns[-1:] if self.train_on == "everything" else turns
            return [_Part(text, learnt, turn=i in turns) for i, (text, learnt) in enumerate(parts)]
        raise TypeError(f"not a row: {row!r}")

    def _join(self, parts: list[_Part], encoded: list[list[int]]) -> _Example:
        tokens: list[int] = []
        mask: list[int] = []
        prompt_length = size = 0
        last = ""
        eos_id, eos = self.tokenizer.eos_id, self.tokenizer.special.get("eos_token", "")
        for part, ids in zip(parts, encoded, strict=True):
            learnt, text = len(ids) if part.learnt else 0, part.text
            if part.turn and eos_id in ids:
                # A template may put a line break after the end of a turn.
                learnt, text = ids.index(eos_id) + 1, text.partition(eos)[0] if eos else text
            if learnt and text:
                prompt_length, last = len(tokens), text
                size += len(text.encode())
            tokens += ids
            mask += [1] * learnt + [0] * (len(ids) - learnt)
        return _Example(tokens, mask, prompt_length, size, last)


class _Names:
    """Ids of examples, no two the same: one that occurs again is followed by its line."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Lines of one file are distinct; a million of them need not be remembered.
        self._distinct = isinstance(rows, Rows) and not rows.named and len(rows.files) == 1
        self._taken: set[str] = set()

    def of(self, row: Row) -> bytes:
        name = row.example_id
        if self._distinct:
            return name.encode()
        if name in self._taken:
            name = f"{name}#{row.line:05d}"
        again, number = name, 1
        while name in self._taken:
            number += 1
            name = f"{again}#{number}"
        self._taken.add(name)
        return name.encode()


def _offsets(lengths: array[int]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.frombuffer(lengths, np.int64), out=offsets[1:])
    offsets.setflags(write=False)
    return offsets


def _hash(*arrays: npt.NDArray[np.int32] | npt.NDArray[np.uint8] | npt.NDArray[np.int64]) -> str:
    sha = hashlib.sha256()
    for numbers in arrays:
        # The same bytes on a big-endian machine.
        sha.update(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).data)
    return sha.hexdigest()
