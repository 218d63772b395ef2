"""Attention over packed rows: the one place where the rows of a pass are told apart.

Everything but attention works on a pass as one line of tokens, [1, M, d], without padding. A plan
says how attention lays them out: `PackedPlan` as [rows, T] with causal attention and no mask, where
T is a request's own longest row, rounded up, and requests of one T lie side by side; `DecodePlan`
one new token per row against a cache of keys and values.
Guarantees: a row's numbers do not depend on the other requests of the pass: T comes from its own
request alone, and there is one small product per row and head (torch's fused kernel for one query
was measured not to be independent of the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from crucible_tinkex.server.model.products import DECODED, PACKED

NAME = "crucible"
BUCKET = 8
"""Row lengths, requests and decoding extents are rounded up to a multiple of this."""


SHORT = 256
"""Rows up to this length get attention by plain products."""


def round_up(n: int, multiple: int = BUCKET) -> int:
    return -(-n // multiple) * multiple


class Plan(Protocol):
    @property
    def tile(self) -> int:
        """Rows of a tile of the other layers' products (`products`)."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [H, M, D], k and v [G, M, D] to the output [M, H, D]."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows within the line: tokens `start` to `end`, laid out as [rows, T]."""

    start: int
    end: int
    rows: int
    padded: Tensor | None
    """[rows * T] positions within the block, or None where all rows have T tokens."""
    unpadded: Tensor | None
    """[end - start] positions within rows * T."""

    @classmethod
    def of(cls, start: int, lengths: Sequence[int]) -> Block:
        end = start + sum(lengths)
        longest = round_up(max(lengths))
        if all(n == longest for n in lengths):
            return cls(start, end, len(lengths), None, None)
        padded = torch.zeros(len(lengths), longest, dtype=torch.long)
        unpadded = torch.empty(end - start, dtype=torch.long)
        first = 0
        for i, n in enumerate(lengths):
            padded[i] = first
            padded[i, :n] = torch.arange(first, first + n)
            unpadded[first : first + n] = torch.arange(i * longest, i * longest + n)
            first += n
        return cls(start, end, len(lengths), padded.view(-1), unpadded)

    @classmethod
    def of_all(cls, requests: Sequence[Sequence[int]]) -> list[Block]:
        """Blocks for requests one after another, given their rows' lengths. Neighbours with the
        same T share one: a row's products do not depend on how many rows there are."""
        blocks: list[Block] = []
        start = 0
        for longest, group in groupby(requests, key=lambda lengths: round_up(max(lengths))):
            members = list(group)
            if longest <= SHORT:
                members = [[n for lengths in members for n in lengths]]
            for lengths in members:
                blocks.append(cls.of(start, lengths))
                start = blocks[-1].end
        return blocks

    def lay_out(self, x: Tensor) -> Tensor:
        """[H, M, D] to this block's [rows, H, T, D]."""
        part = x[:, self.start : self.end]
        if self.padded is not None:
            part = part.index_select(1, self.padded.to(x.device))
        return part.reshape(len(x), self.rows, -1, x.shape[2]).transpose(0, 1)

    def line_up(self, x: Tensor) -> Tensor:
        """[rows, H, T, D] back to [tokens, H, D]."""
        line = x.transpose(1, 2).flatten(0, 1)
        if self.unpadded is None:
            return line
        return line.index_select(0, self.unpadded.to(x.device))


@dataclass(slots=True)
class PackedPlan:
    """Causal attention within each row. `cache` keeps keys and values per layer if asked."""

    blocks: Sequence[Block]
    keep_cache: bool = False
    cache: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tile: int = PACKED

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        lines = []
        for block in self.blocks:
            keys, values = block.lay_out(k), block.lay_out(v)
            out = causal_attention(block.lay_out(q), keys, values, scale)
            lines.append(block.line_up(out))
            if self.keep_cache:
                self.cache.append((keys, values))
        return torch.cat(lines) if len(lines) > 1 else lines[0]


@dataclass(slots=True)
class DecodePlan:
    """One query per row. `cache[layer]` is K and V [B, G, S, D]; the new ones go to slot `at`.
    Rows after the first B fill up the line; they have no past and get zeros."""

    cache: list[tuple[Tensor, Tensor]]
    at: int
    hidden: Tensor
    """[B, 1, 1, S], True where a slot must not be seen."""
    tile: int = DECODED

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        keys, values = self.cache[layer]
        filling = q.shape[1] - len(keys)
        q, k, v = (x.transpose(0, 1)[: len(keys)] for x in (q, k, v))
        keys[:, :, self.at] = k
        values[:, :, self.at] = v
        queries = q.reshape(len(keys), keys.shape[1], -1, q.shape[2])
        scores = torch.matmul(queries, keys.transpose(-1, -2)).float().mul_(scale)
        weights = scores.masked_fill_(self.hidden, float("-inf")).softmax(-1).to(q.dtype)
        return F.pad(torch.matmul(weights, values).flatten(1, 2), (0, 0, 0, 0, 0, filling))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """[rows, H, T, D] over [rows, G, T, D]. Short rows use plain products: five times faster in
    backward than torch's fused kernel on CPUs, whose memory only long rows need."""
    rows, heads, length, width = q.shape
    groups = k.shape[1]
    if length > SHORT:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=groups != heads
        )
    queries = q.reshape(rows, groups, heads // groups * length, width)
    scores = torch.matmul(queries, k.transpose(-1, -2)).float() * scale
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    future = future.repeat(heads // groups, 1)
    weights = scores.masked_fill_(future, float("-inf")).softmax(-1).to(q.dtype)
    return torch.matmul(weights, v).view(rows, heads, length, width)


def crucible_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: Plan,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that `transformers` calls in every layer; `plan` comes with the model's call."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(module.layer_idx, query[0], key[0], value[0], scale)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, crucible_attention)
