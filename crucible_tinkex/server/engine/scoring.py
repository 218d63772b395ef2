"""What a sampling request asks about the tokens of its prompt, from the prompt's hidden states.

Row i predicts the prompt's token i + 1; the first token has no row. Works in chunks of rows, so
that not all logits lie in memory.
Guarantee: the numbers depend on the request alone.
"""

from __future__ import annotations

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
    logprobs, topk = None, None
    if request.prompt_logprobs:
        targets = tokens.roll(-1)[:, None].to(hidden.device)
        values, _ = head.logprobs(hidden, targets, adapter, None)
        found = values[: len(request.prompt) - 1, 0].tolist()
        logprobs = _last((None, *found), request)
    if request.topk_prompt_logprobs > 0:
        topk = _last((None, *_topk(head, adapter, request, hidden)), request)
    return PromptScores(logprobs, topk)


def _topk(head: Head, adapter: HeadAdapter | None, request: Sample, hidden: Tensor) -> list[TopK]:
    out: list[TopK] = []
    count = len(request.prompt) - 1
    for first in range(0, count, CHUNK):
        logits = head.logits(hidden[first : first + CHUNK], adapter)[: count - first]
        norm = logits.logsumexp(-1, keepdim=True)
        best = logits.topk(min(request.topk_prompt_logprobs, logits.shape[1]))
        pairs = zip(best.indices.tolist(), (best.values - norm).tolist(), strict=True)
        out += [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return out


def _last(rows: tuple[_Scored, ...], request: Sample) -> tuple[_Scored | None, ...]:
    """Only the last ones, if the request wants no more."""
    unwanted = len(rows) - (request.prompt_logprobs_last_n or len(rows))
    return (*[None] * unwanted, *rows[unwanted:])
