"""From a user's rows to the protocol's datums: real shifted targets, with weights.

A row is a dict in one of the formats of `datasets` (`prompt`/`completion`, `text`, `messages`) or
in the seed's (`input`/`output`), optionally with `id` and `weight`. Tokens, mask and shift are
those of `datasets.tokenise`, which sweeps use too. The original passed dicts of text on, which the
service refused, batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets import (
    Chat,
    Message,
    PromptCompletion,
    Row,
    Text,
    TokenisedDataset,
    Tokenizer,
    read_rows,
    tokenise,
)
from crucible_tinkex.errors import DataError
from crucible_tinkex.protocol.wire import Datum
from crucible_tinkex.training.losses.objective import weighed
from crucible_tinkex.training.losses.schemes import WeightScheme
from crucible_tinkex.training.recipes.datums import datum

_SOURCE = "rows"
_FORMATS = (
    'a row is {"prompt": ..., "completion": ...}, {"input": ..., "output": ...}, {"text": ...} or '
    '{"messages": [{"role": ..., "content": ...}, ...]}'
)


def load(dataset: str | Path | Sequence[Any]) -> list[Any]:
    """The rows of a file, or the rows themselves; never none. Raises `DataError`."""
    rows: list[Any] = list(read_rows(dataset)) if isinstance(dataset, str | Path) else list(dataset)
    if not rows:
        raise DataError("the dataset has no rows")
    return rows


def parse(value: Any, line: int) -> Row:
    """Row `line`, from 1. Raises `DataError` that names it."""
    if isinstance(value, Row):
        return value
    where = f"{_SOURCE}, line {line}"
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected a dict, found {type(value).__name__}; {_FORMATS}")
    id_ = None if value.get("id") is None else str(value["id"])
    for prompt, completion in (("prompt", "completion"), ("input", "output")):
        if prompt in value and completion in value:
            texts = [_text(value[key], key, where) for key in (prompt, completion)]
            return PromptCompletion(_SOURCE, line, *texts, id=id_)
    if "text" in value:
        return Text(_SOURCE, line, _text(value["text"], "text", where), id=id_)
    if "messages" in value:
        return Chat(_SOURCE, line, _messages(value["messages"], where), id=id_)
    raise DataError(f"{where}: found the keys {', '.join(map(str, value)) or 'none'}; {_FORMATS}")


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key!r} must be a text that is not empty")
    return value


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    try:
        return tuple(Message(str(m["role"]), _text(m["content"], "content", where)) for m in value)
    except (TypeError, KeyError):
        raise DataError(f"{where}: each message needs 'role' and 'content'") from None


def tokenised(
    rows: Sequence[Any], tokenizer: Tokenizer, *, max_length: int | None
) -> TokenisedDataset:
    parsed = [parse(row, number) for number, row in enumerate(rows, 1)]
    return tokenise(parsed, tokenizer, max_length=max_length, keep_text=True)


def datums(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    *,
    max_length: int | None,
    scheme: WeightScheme,
    config: Mapping[str, float],
) -> list[Datum]:
    """One datum per row: N input tokens, N next-token targets, N weights (0 where only read)."""
    data = tokenised(rows, tokenizer, max_length=max_length)
    return [
        weighed(
            datum(data, i),
            data.text(i)._replace(row=as_mapping(row)),
            scheme,
            config,
            where=f"{_SOURCE}, line {i + 1}",
        )
        for i, row in enumerate(rows)
    ]


def as_mapping(row: Any) -> Mapping[str, Any]:
    """What a scheme sees of a row: as it was given, or as it was read from a file."""
    if isinstance(row, Mapping):
        return row
    return {**row.fields, **row.notes} if isinstance(row, Row) else {}


def completion_of(row: Mapping[str, Any]) -> str:
    """The text that is learnt, where it is one text."""
    return str(row.get("completion", row.get("output", row.get("text", ""))))
