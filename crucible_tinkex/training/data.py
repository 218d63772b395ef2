"""The tokenised rows that all trials of a sweep share, and the way back to text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import crucible_tinkex.datasets as datasets
from crucible_tinkex.errors import CrucibleError

if TYPE_CHECKING:
    from crucible_tinkex.datasets import TokenisedDataset, Tokenizer


@dataclass(frozen=True)
class SweepData:
    """Picklable; the arrays are shared without a copy where the process allows it."""

    train: TokenisedDataset
    eval: TokenisedDataset | None
    fingerprint: str
    """Of the content and of how it was read."""
    tokenizer: str | None
    """What `load_tokenizer` takes; loaded only when text must be decoded."""


class TextDecoder:
    """Turns tokens into text, for people to read. Loads its tokenizer at the first use.

    Nothing depends on the text: where the tokenizer cannot be had (its folder lies on another
    node, the hub is out of reach), there is none.
    """

    def __init__(self, tokenizer: str | None) -> None:
        self._name = tokenizer
        self._loading: asyncio.Task[Tokenizer | None] | None = None

    async def text(self, tokens: Sequence[int]) -> str | None:
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        tokenizer = await asyncio.shield(self._loading)
        return None if tokenizer is None else tokenizer.decode(tokens)

    def _load(self) -> Tokenizer | None:
        if self._name is None:
            return None
        try:
            return datasets.load_tokenizer(self._name)
        except CrucibleError:
            return None
