"""What a sampling request asks about the tokens of its prompt, from the prompt's hidden states.

Row i predicts the prompt's token i + 1; the first token has no row. Works in chunks of rows, so
that not all logits lie in memory.
Guarantees: the numbers depend on the request alone; drawn tokens come from a generator of their
own, so that asking for them changes no sampled sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from crucible_tinkex.server.choosing import generator_for
from crucible_tinkex.server.head import CHUNK, Head, HeadAdapter, head_adapter
from crucible_tinkex.server.lora import Segment
from crucible_tinkex.server.operations import (
    Alternatives,
    FloatArray,
    PromptScores,
    Sample,
    Targets,
)

TopK = tuple[tuple[int, float], ...]
_Scored = TypeVar("_Scored")
_DRAWN = -1
"""The index of the generator of alternatives, beside those of the samples."""


def score(
    head: Head, segment: Segment | None, request: Sample, tokens: Tensor, hidden: Tensor
) -> PromptScores:
    """`tokens` and `hidden` are the prompt, filled up to its bucket."""
    adapter = head_adapter(segment) if segment is not None else None
    rows = _Rows(head, adapter, hidden, len(request.prompt) - 1)
    return PromptScores(
        _logprobs(rows, request, tokens) if request.prompt_logprobs else None,
        _topk(rows, request) if request.topk_prompt_logprobs > 0 else None,
        request.targets,
        _targets(rows, request.targets) if request.targets is not None else None,
        _alternatives(rows, request) if request.alternatives > 0 else None,
    )


class _Rows:
    """The first `count` rows of `hidden`, those that predict a token of the prompt."""

    def __init__(self, head: Head, adapter: HeadAdapter | None, hidden: Tensor, count: int) -> None:
        self.head = head
        self.adapter = adapter
        self.hidden = hidden
        self.count = count

    def logits(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First row, logits [n, V] and log-normaliser [n, 1] of each chunk, in fp32."""
        for first in range(0, self.count, CHUNK):
            logits = self.head.logits(self.hidden[first : first + CHUNK], self.adapter)
            wanted = logits[: self.count - first]
            yield first, wanted, wanted.logsumexp(-1, keepdim=True)


def _logprobs(rows: _Rows, request: Sample, tokens: Tensor) -> tuple[float | None, ...]:
    targets = tokens.roll(-1)[:, None].to(rows.hidden.device)
    values, _ = rows.head.logprobs(rows.hidden, targets, rows.adapter, None)
    return _last((None, *values[: rows.count, 0].tolist()), request)


def _topk(rows: _Rows, request: Sample) -> tuple[TopK | None, ...]:
    out: list[TopK | None] = [None]
    for _, logits, norm in rows.logits():
        best = logits.topk(min(request.topk_prompt_logprobs, logits.shape[1]))
        pairs = zip(best.indices.tolist(), (best.values - norm).tolist(), strict=True)
        out += [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return _last(tuple(out), request)


def _last(rows: tuple[_Scored, ...], request: Sample) -> tuple[_Scored | None, ...]:
    """Only the last ones, if the request wants no more."""
    unwanted = len(rows) - (request.prompt_logprobs_last_n or len(rows))
    return (*[None] * unwanted, *rows[unwanted:])


def _targets(rows: _Rows, targets: Targets) -> FloatArray:
    """0 where the id is -1."""
    out = np.zeros(len(targets.ids), np.float32)
    asked = targets.ids >= 0
    for first, logits, norm in rows.logits():
        cells = asked & (targets.rows >= first) & (targets.rows < first + len(logits))
        if cells.any():
            at = torch.from_numpy(targets.rows[cells] - first).to(logits.device)
            ids = torch.from_numpy(targets.ids[cells]).to(logits.device)
            out[cells] = (logits[at, ids] - norm[at, 0]).cpu().numpy()
    return out


def _alternatives(rows: _Rows, request: Sample) -> Alternatives:
    k = request.alternatives
    tokens = np.zeros((rows.count, k), np.int64)
    logprobs = np.zeros((rows.count, k), np.float32)
    generator = generator_for(request.seed, _DRAWN)
    for first, logits, norm in rows.logits():
        drawn = _draw(logits.cpu(), k, request.temperature, generator)
        part = slice(first, first + len(logits))
        tokens[part] = drawn.numpy()
        logprobs[part] = (logits.cpu().gather(1, drawn) - norm.cpu()).numpy()
    return Alternatives(tokens, logprobs)


def _draw(logits: Tensor, k: int, temperature: float, generator: torch.Generator) -> Tensor:
    """[n, V] to k tokens per row, with replacement."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand(-1, k).contiguous()
    mass = (logits.double() / temperature).softmax(-1).cumsum(-1)
    random = torch.rand(len(logits), k, dtype=torch.float64, generator=generator)
    found = torch.searchsorted(mass, random * mass[:, -1:], right=True)
    return found.clamp_(max=logits.shape[1] - 1)
