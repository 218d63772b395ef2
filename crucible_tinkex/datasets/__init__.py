"""Datasets: rows read from a file, tokenised once, and drawn in an order that is a pure function.

What needs the tokenizer library is resolved on first use (PEP 562): a session trains on arrays of
token ids and never needs the tokenizer library, which costs 30 ms and 10 MB to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crucible_tinkex.datasets.files.source import DataFile, Rows, open_rows, read_rows
from crucible_tinkex.datasets.fingerprint import file_hash, files_hash, fingerprint, reading
from crucible_tinkex.datasets.order import Segment, batch_indices, epoch_of, total_steps
from crucible_tinkex.datasets.rows import (
    Chat,
    Format,
    Message,
    PromptCompletion,
    Row,
    Text,
    TrainOn,
    overlap,
)
from crucible_tinkex.datasets.sampling import stratified
from crucible_tinkex.datasets.split import split
from crucible_tinkex.datasets.tokens.statistics import LengthStatistics
from crucible_tinkex.datasets.tokens.tokenised import Inputs, TokenisedDataset
from crucible_tinkex.datasets.tokens.tokenising import TooLong, tokenise

if TYPE_CHECKING:
    from crucible_tinkex.datasets.showing import ShownRow, shown, typical
    from crucible_tinkex.datasets.tokens.tokenizer import Tokenizer, load_tokenizer

__all__ = [  # noqa: RUF022  (in groups)
    # rows
    "Chat",
    "DataFile",
    "Format",
    "Message",
    "PromptCompletion",
    "Row",
    "Rows",
    "Text",
    "open_rows",
    "overlap",
    "read_rows",
    "split",
    "stratified",
    # tokens
    "Inputs",
    "LengthStatistics",
    "ShownRow",
    "TokenisedDataset",
    "Tokenizer",
    "TooLong",
    "TrainOn",
    "load_tokenizer",
    "shown",
    "tokenise",
    "typical",
    # identity
    "file_hash",
    "files_hash",
    "fingerprint",
    "reading",
    # order
    "Segment",
    "batch_indices",
    "epoch_of",
    "total_steps",
]


def __getattr__(name: str) -> Any:
    if name in ("Tokenizer", "load_tokenizer"):
        from crucible_tinkex.datasets.tokens import tokenizer

        return getattr(tokenizer, name)
    if name in ("ShownRow", "shown", "typical"):
        from crucible_tinkex.datasets import showing

        return getattr(showing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
