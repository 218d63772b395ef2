"""A dataset as flat arrays of token ids, made once and shared by all sessions without a copy.

Six NumPy arrays hold everything, read-only, so that Ray's object store maps them into every
process. A row is its prompt, then what is learnt, then the end-of-sequence token, which is learnt
too. Prompt and completion are encoded apart and joined: the ids of the prompt are the same in
training and when the model is asked to complete it.

Training is next-token prediction in Tinker's form: a row of N tokens gives N-1 positions, with
`model_input = tokens[:-1]`, `target_tokens = tokens[1:]` and `weights = mask[1:]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.rows import Chat, PromptCompletion, Row, Text
from crucible_tinkex.errors import DataError

if TYPE_CHECKING:
    from crucible_tinkex.datasets.tokenizer import Tokenizer


class Inputs(NamedTuple):
    """One row as the service wants it: three lists of one length."""

    model_input: list[int]
    targets: list[int]
    weights: list[float]


class _Example(NamedTuple):
    tokens: list[int]
    mask: list[int]
    prompt_length: int


@dataclass(frozen=True, eq=False, repr=False)
class TokenisedDataset:
    """Rows of token ids; make one with `tokenise`. Row i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    """1 where a token is learnt, 0 where it is only read."""
    offsets: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int32]
    """Tokens before the last thing that is learnt: what a model is given to complete."""
    eos_id: int
    truncated: int
    """Rows that were cut to the maximum length."""
    has_prompts: bool
    """Whether every row has something to complete (plain text has not)."""
    fingerprint: str
    """SHA-256 of the tokens: the same rows under the same tokenizer, in the same order."""
    ids: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """The examples' ids in UTF-8, one after the other."""
    id_offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """As `offsets`; empty if the examples have no ids but their positions, from 1."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return (
            f"TokenisedDataset(rows={len(self)}, tokens={len(self.tokens)}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def positions(self) -> int:
        """Positions that one epoch trains on: what a service counts and bills."""
        return len(self.tokens) - len(self)

    def example(self, i: int) -> tuple[list[int], list[int]]:
        """Tokens and mask of row i; `IndexError` outside `0 <= i < len`."""
        start, end = self._span(i)
        return self.tokens[start:end].tolist(), self.mask[start:end].tolist()

    def inputs(self, i: int) -> Inputs:
        """Row i for `forward_backward`."""
        tokens, mask = self.example(i)
        return Inputs(tokens[:-1], tokens[1:], [float(learnt) for learnt in mask[1:]])

    def prompt(self, i: int) -> list[int]:
        """What the model is given when row i is evaluated by generation."""
        start, _ = self._span(i)
        prompt: list[int] = self.tokens[start : start + int(self.prompt_lengths[i])].tolist()
        return prompt

    def completion(self, i: int) -> list[int]:
        """What the model should then write, without the end-of-sequence token."""
        tokens, mask = self.example(i)
        length = int(self.prompt_lengths[i])
        learnt = [t for t, m in zip(tokens[length:], mask[length:], strict=True) if m]
        return learnt[:-1] if learnt and learnt[-1] == self.eos_id else learnt

    def example_id(self, i: int) -> str:
        """The id of row i in per-example results: that of the file, else its line; no two rows
        have the same. `IndexError` outside `0 <= i < len`."""
        self._span(i)
        if not len(self.id_offsets):
            return f"{i + 1:05d}"
        return bytes(self.ids[self.id_offsets[i] : self.id_offsets[i + 1]]).decode()

    def _span(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return int(self.offsets[i]), int(self.offsets[i + 1])


def tokenise(
    rows: Sequence[Row], tokenizer: Tokenizer, *, max_length: int | None = None
) -> TokenisedDataset:
    """Encode all rows; `max_length` counts every token of a row with its end-of-sequence token.

    A text that is longer is cut from the right (`truncated` counts them; its end is then not
    learnt as an end). A longer row of another format would lose what is to be learnt: `DataError`.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length must be at least 2, not {max_length}")
    if not rows:
        raise DataError("the dataset has no rows")
    examples = [_encode(row, tokenizer) for row in rows]
    truncated = 0
    if max_length is not None:
        _check_lengths(rows, examples, max_length)
        truncated = sum(len(example.tokens) > max_length for example in examples)
        examples = [
            _Example(e.tokens[:max_length], e.mask[:max_length], e.prompt_length) for e in examples
        ]
    return _pack(
        examples,
        ids=_distinct_ids(rows),
        eos_id=tokenizer.eos_id,
        truncated=truncated,
        has_prompts=not any(isinstance(row, Text) for row in rows),
    )


def _check_lengths(rows: Sequence[Row], examples: Sequence[_Example], max_length: int) -> None:
    long = [
        (row, len(example.tokens))
        for row, example in zip(rows, examples, strict=True)
        if len(example.tokens) > max_length and not isinstance(row, Text)
    ]
    if long:
        row, length = long[0]
        raise DataError(
            f"{row.where}: the row has {length} tokens, over max_length = {max_length} "
            f"({len(long)} of {len(rows)} rows are too long); shorten or remove them, or set "
            f"max_length to {max(length for _, length in long)}"
        )


def _encode(row: Row, tokenizer: Tokenizer) -> _Example:
    if isinstance(row, PromptCompletion):
        example = _join(
            [
                (tokenizer.encode_prompt(row.prompt), False),
                ([*tokenizer.encode(row.completion), tokenizer.eos_id], True),
            ]
        )
    elif isinstance(row, Text):
        example = _join(
            [
                (list(tokenizer.prefix), False),
                ([*tokenizer.encode(row.text), tokenizer.eos_id], True),
            ]
        )
    elif isinstance(row, Chat):
        example = _join(_chat_parts(row, tokenizer))
    else:
        raise TypeError(f"not a row: {row!r}")
    if not any(example.mask[1:]):
        raise DataError(f"{row.where}: the tokenizer leaves nothing to learn; remove the row")
    return example


def _chat_parts(row: Chat, tokenizer: Tokenizer) -> Iterable[tuple[list[int], bool]]:
    try:
        parts = tokenizer.chat_parts(row.messages)
    except DataError as error:
        raise DataError(f"{row.where}: {error.message}") from error
    for text, learnt in parts:
        ids = tokenizer.encode(text)
        # A template may put a line break after the end of a turn; generation has stopped by then.
        end = ids.index(tokenizer.eos_id) + 1 if learnt and tokenizer.eos_id in ids else len(ids)
        yield ids[:end], learnt
        yield ids[end:], False


def _join(parts: Iterable[tuple[list[int], bool]]) -> _Example:
    tokens: list[int] = []
    mask: list[int] = []
    prompt_length = 0
    for ids, learnt in parts:
        if learnt:
            prompt_length = len(tokens)
        tokens += ids
        mask += [int(learnt)] * len(ids)
    return _Example(tokens, mask, prompt_length)


def _distinct_ids(rows: Iterable[Row]) -> list[bytes]:
    """An id that occurs again is followed by its line."""
    ids: dict[str, None] = {}
    for row in rows:
        id = row.example_id
        ids[f"{id}#{row.line:05d}" if id in ids else id] = None
    return [id.encode() for id in ids]


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _pack(
    examples: Sequence[_Example],
    *,
    ids: Sequence[bytes],
    eos_id: int,
    truncated: int,
    has_prompts: bool,
) -> TokenisedDataset:
    offsets = _offsets([len(example.tokens) for example in examples])
    tokens = np.fromiter((t for e in examples for t in e.tokens), np.int32, count=offsets[-1])
    mask = np.fromiter((m for e in examples for m in e.mask), np.uint8, count=offsets[-1])
    prompt_lengths = np.array([example.prompt_length for example in examples], dtype=np.int32)
    names = np.frombuffer(b"".join(ids), np.uint8)
    name_offsets = _offsets([len(id) for id in ids])
    for array in (tokens, mask, offsets, prompt_lengths, names, name_offsets):
        array.setflags(write=False)
    sha = hashlib.sha256()
    for array in (tokens, mask, offsets, prompt_lengths):
        # The same bytes on a big-endian machine.
        sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return TokenisedDataset(
        tokens=tokens,
        mask=mask,
        offsets=offsets,
        prompt_lengths=prompt_lengths,
        ids=names,
        id_offsets=name_offsets,
        eos_id=eos_id,
        truncated=truncated,
        has_prompts=has_prompts,
        fingerprint=sha.hexdigest(),
    )
