"""Rows as a model will see them, for people who check what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from crucible_tinkex.datasets.tokens.tokenised import TokenisedDataset
from crucible_tinkex.datasets.tokens.tokenizer import Tokenizer


class ShownRow(NamedTuple):
    """One row: its text, special tokens spelled out, in parts that are learnt and parts that are
    only read."""

    id: str
    tokens: int
    parts: Sequence[tuple[str, bool]]


def shown(data: TokenisedDataset, tokenizer: Tokenizer, row: int) -> ShownRow:
    """Row `row`, decoded from the very tokens that are trained on."""
    tokens, mask = data.example(row)
    # The first token is never a target.
    marked = zip(tokens, [0, *mask[1:]], strict=True)
    parts = [
        (tokenizer.spelled([token for token, _ in run]), bool(learnt))
        for learnt, run in groupby(marked, key=lambda pair: pair[1])
    ]
    return ShownRow(data.example_id(row), len(tokens), parts)


def typical(data: TokenisedDataset) -> list[int]:
    """Up to three rows that say most about a data set: the first, one of median length, and the
    longest."""
    lengths = data.lengths
    median = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    return list(dict.fromkeys([0, median, int(lengths.argmax())]))
