"""What a sampling request asks about the tokens of its prompt, from the prompt's hidden states.

Row i predicts the prompt's token i + 1; the first token has no row. Works in chunks of rows, so
that not all logits lie in memory.
Guarantee: the numbers depend on the request alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor

from crucible_tinkex.server.model.head import CHUNK, Head, HeadAdapter, head_adapter
from crucible_tinkex.server.model.lora import Segment
from crucible_tinkex.server.operations import PromptScores, Sample

TopK = tuple[tuple[int, float], ...]
_Scored = TypeVar("_Scored")


def score(
    head: Head, segment: Segment | None, request: Sample, tokens: Tensor, hidden: Tensor
) -> PromptScores:
    """`tokens` and `hidden` are the prompt, filled up to its bucket."""
    adapter = head_adapter(segment) if segment is not None else None
    rows = _Rows(head, adapter, hidden, len(request.prompt) - 1)
    return PromptScores(
        _logprobs(rows, request, tokens) if request.prompt_logprobs else None,
        _topk(rows, request) if request.topk_prompt_logprobs > 0 else None,
    )


class _Rows:
    """The first `count` rows of `hidden`, those that predict a token of the prompt."""

    def __init__(self, head: Head, adapter: HeadAdapter | None, hidden: Tensor, count: int) -> None:
        self.head = head
        self.adapter = adapter
        self.hidden = hidden
        self.count = count

    def logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [n, V] and log-normaliser [n, 1] of each chunk, in fp32."""
        for first in range(0, self.count, CHUNK):
            logits = self.head.logits(self.hidden[first : first + CHUNK], self.adapter)
            wanted = logits[: self.count - first]
            yield wanted, wanted.logsumexp(-1, keepdim=True)


def _logprobs(rows: _Rows, request: Sample, tokens: Tensor) -> tuple[float | None, ...]:
    targets = tokens.roll(-1)[:, None].to(rows.hidden.device)
    values, _ = rows.head.logprobs(rows.hidden, targets, rows.adapter, None)
    return _last((None, *values[: rows.count, 0].tolist()), request)


def _topk(rows: _Rows, request: Sample) -> tuple[TopK | None, ...]:
    out: list[TopK | None] = [None]
    for logits, norm in rows.logits():
        best = logits.topk(min(request.topk_prompt_logprobs, logits.shape[1]))
        pairs = zip(best.indices.tolist(), (best.values - norm).tolist(), strict=True)
        out += [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return _last(tuple(out), request)


def _last(rows: tuple[_Scored, ...], request: Sample) -> tuple[_Scored | None, ...]:
    """Only the last ones, if the request wants no more."""
    unwanted = len(rows) - (request.prompt_logprobs_last_n or len(rows))
    return (*[None] * unwanted, *rows[unwanted:])
