"""The output layer: log-probabilities of targets from hidden states, without keeping all logits.

Works in chunks of rows whose size depends only on the request. For training it keeps the logits of
the rows that can carry a gradient and turns dL/dlogprob into dL/dhidden (and the gradients of an
adapter on the output layer) by hand: softmax minus one-hot.
Guarantees: a request's numbers depend on its own rows only; log-softmax is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crucible_tinkex.server.lora import Segment

MIN_ROWS = 16
"""Products get a multiple of so many rows, because smaller ones use other kernels."""
CHUNK = 128
"""Rows per chunk; a multiple of `MIN_ROWS`."""


@dataclass(frozen=True, slots=True)
class HeadAdapter:
    """An adapter on the output layer: A [d, r], B [r, V] and, for training, the gradients of one
    pass, and those that they are added to when the pass has worked."""

    a: Tensor
    b: Tensor
    scale: float
    grads: tuple[Tensor, Tensor] | None = None
    into: tuple[Tensor, Tensor] | None = None

    def collect(self) -> None:
        """Add the gradients of one pass to the adapter's. Allocates nothing: cannot fail."""
        for own, into in zip(self.grads or (), self.into or (), strict=True):
            into.add_(own)


def head_adapter(segment: Segment) -> HeadAdapter | None:
    """The part of a segment's adapter that sits on the output layer, if there is one."""
    layout = segment.layout
    pair = layout.head_views(segment.flat)
    if pair is None:
        return None
    into = None if segment.grad is None else layout.head_views(segment.grad)
    grads = None if into is None else (torch.zeros_like(into[0]), torch.zeros_like(into[1]))
    return HeadAdapter(*pair, segment.scale, grads, into)


@dataclass(slots=True)
class _Kept:
    """Rows of one chunk that can carry a gradient: their numbers, logits and log-normaliser."""

    rows: Tensor
    logits: Tensor
    norm: Tensor


class Head:
    """The frozen output matrix [V, d]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._scratch = torch.empty(CHUNK, weight.shape[0], device=weight.device)

    def logits(self, hidden: Tensor, adapter: HeadAdapter | None) -> Tensor:
        """[n, d] to [n, V] in the computing dtype."""
        out = F.linear(hidden, self.weight)
        if adapter is not None:
            out.addmm_(hidden @ adapter.a, adapter.b, alpha=adapter.scale)
        return out

    def logits_of(self, hidden: Tensor, segments: Sequence[Segment]) -> Tensor:
        """The same for rows of several adapters."""
        out = F.linear(hidden, self.weight)
        for s in segments:
            adapter = head_adapter(s)
            if adapter is not None:
                part = slice(s.start, s.end)
                filling = (0, 0, 0, -(s.end - s.start) % MIN_ROWS)
                inner = F.pad(hidden[part], filling) @ adapter.a
                filled = F.pad(out[part], filling).addmm_(inner, adapter.b, alpha=adapter.scale)
                out[part] = filled[: s.end - s.start]
        return out

    def logprobs(
        self, hidden: Tensor, targets: Tensor, adapter: HeadAdapter | None, active: Tensor | None
    ) -> tuple[Tensor, list[_Kept]]:
        """Log-probabilities [n, K] of the targets [n, K], and what backward needs of the `active`
        rows."""
        parts: list[Tensor] = []
        kept: list[_Kept] = []
        for first in range(0, len(hidden), CHUNK):
            part = slice(first, first + CHUNK)
            logits = self.logits(hidden[part], adapter)
            values = self._scratch[: len(logits)].copy_(logits)
            wanted = values.gather(1, targets[part])
            top = values.amax(-1)
            norm = values.sub_(top[:, None]).exp_().sum(-1).log_().add_(top)
            parts.append(wanted - norm[:, None])
            if active is not None and bool(active[part].any()):
                rows = active[part].nonzero().squeeze(1)
                kept.append(_Kept(rows + first, logits[rows], norm[rows]))
        return torch.cat(parts), kept

    def backward(
        self,
        hidden: Tensor,
        targets: Tensor,
        grad: Tensor,
        adapter: HeadAdapter | None,
        kept: list[_Kept],
    ) -> Tensor:
        """dL/dhidden [n, d] from dL/dlogprob [n, K]; adds to the pass's of the adapter."""
        out = torch.zeros_like(hidden)
        for k in kept:
            g = grad[k.rows]
            d = self._scratch[: len(g)].copy_(k.logits)
            d.sub_(k.norm[:, None]).exp_().mul_(-g.sum(1, keepdim=True))
            d.scatter_add_(1, targets[k.rows], g)
            dlogits = d.to(hidden.dtype)
            dh = dlogits @ self.weight
            if adapter is not None:
                du = (dlogits @ adapter.b.T).mul_(adapter.scale)
                dh.addmm_(du, adapter.a.T)
                if adapter.grads is not None:
                    h = hidden[k.rows]
                    adapter.grads[0].add_(h.T @ du)
                    adapter.grads[1].add_((h @ adapter.a).T @ dlogits, alpha=adapter.scale)
            out[k.rows] = dh
        return out
