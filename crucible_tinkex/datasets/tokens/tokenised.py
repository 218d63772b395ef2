"""A dataset as flat arrays of token ids, made once and shared by all sessions without a copy.

A few NumPy arrays hold everything, read-only, so that Ray's object store maps them into every
process. A row is its prompt, then what is learnt, then the end-of-sequence token, which is learnt
too. Prompt and completion are encoded apart and joined: the ids of the prompt are the same in
training and when the model is asked to complete it.

Training is next-token prediction in Tinker's form: a row of N tokens gives N-1 positions, with
`model_input = tokens[:-1]`, `target_tokens = tokens[1:]` and `weights = mask[1:]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.order import Segment, mixed_indices


class Inputs(NamedTuple):
    """One row as the service wants it: three lists of one length."""

    model_input: list[int]
    targets: list[int]
    weights: list[float]


class RowText(NamedTuple):
    """One row as a token-weight scheme sees it."""

    row: Mapping[str, Any]
    completion: str
    """The text that is learnt last."""
    spans: npt.NDArray[np.int32]
    """Of shape (targets, 2): the characters of the completion that each target stands for."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenisedDataset:
    """Rows of token ids; `tokenise` makes it. Row i is `tokens[offsets[i]:offsets[i + 1]]`."""

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
    groups: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """The groups of the rows in UTF-8, one after the other."""
    group_offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """As `offsets`, where any row has a group."""
    learnt_bytes: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Bytes of UTF-8 that each row learns, its end not counted; empty if that is not known."""
    dropped: int = 0
    """Rows that were left out because they were too long."""
    spans: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Start and end of every token among the characters of its row's completion, -1 where it is no
    part of it; empty unless `tokenise` was to keep the texts."""
    about: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """With them: each row and its notes in JSON, one after the other."""
    about_offsets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """As `offsets`."""
    segments: tuple[Segment, ...] = ()
    """Rows of each file, and how many of them an epoch shows; none: all rows once."""

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
        """Positions of all rows together."""
        return len(self.tokens) - len(self)

    @property
    def epoch_rows(self) -> int:
        """Rows that one epoch shows: all of them, but for files with weights."""
        return sum(segment.drawn for segment in self.segments) or len(self)

    @property
    def epoch_positions(self) -> float:
        """Positions that one epoch trains on: what a service counts and bills; on average, where
        files have weights."""
        segments = self.segments or (Segment(len(self), len(self)),)
        found, start = 0.0, 0
        for segment in segments:
            end = start + segment.rows
            tokens = int(self.offsets[end] - self.offsets[start])
            if segment.rows:
                found += (tokens - segment.rows) * segment.drawn / segment.rows
            start = end
        return found

    def batch(self, *, seed: int, step: int, batch_size: int) -> list[int]:
        """The rows of step `step` (from 1)."""
        segments = self.segments or (Segment(len(self), len(self)),)
        return mixed_indices(segments, seed=seed, step=step, batch_size=batch_size)

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

    def group(self, i: int) -> str | None:
        """The document or prompt group of row i, if it has one."""
        self._span(i)
        if not len(self.groups):
            return None
        name = bytes(self.groups[self.group_offsets[i] : self.group_offsets[i + 1]])
        return name.decode() or None

    def text(self, i: int) -> RowText:
        """What row i says; only where texts were kept."""
        start, end = self._span(i)
        kept = self._kept(i)
        return RowText(kept["row"], kept["completion"], self.spans.reshape(-1, 2)[start + 1 : end])

    def notes(self, i: int) -> Mapping[str, Any]:
        """The keys of row i that its format does not read; none where texts were not kept."""
        return self._kept(i).get("notes", {}) if len(self.about_offsets) else {}

    def _kept(self, i: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            bytes(self.about[self.about_offsets[i] : self.about_offsets[i + 1]])
        )
        return found

    def _span(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return int(self.offsets[i]), int(self.offsets[i + 1])
