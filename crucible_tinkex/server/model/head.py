"""The output layer: log-probabilities of targets from hidden states, without keeping all logits.

Works in chunks of rows whose size depends only on the request. For training it keeps the softmax of
the rows that can carry a gradient and turns dL/dlogprob into dL/dhidden (and the gradients of an
adapter on the output layer) by hand: softmax minus one-hot.
Guarantees: a request's numbers depend on its own rows only; logits are never rounded to less than
fp32, because a logit of 20 in bf16 is off by 0.06, and so is a ratio of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crucible_tinkex.server.model.lora import Segment
from crucible_tinkex.server.model.products import DECODED, in_tiles

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

    def add(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Add the adapter's share to fp32 logits, in place."""
        inner = hidden.float() @ self.a.float()
        return logits.addmm_(inner, self.b.float(), alpha=self.scale)

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
    """Rows of one chunk that can carry a gradient: their numbers, and softmax in the computing
    dtype."""

    rows: Tensor
    probabilities: Tensor


@contextmanager
def _products_of_bf16() -> Iterator[None]:
    """fp32 matrices whose numbers are bf16's are multiplied as such: as fast, and the sum stays
    fp32. A CPU that cannot do this multiplies in fp32."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Head:
    """The frozen output matrix [V, d], and on a CPU a copy in fp32."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._wide = weight.float() if weight.device.type == "cpu" else weight
        self._scratch = torch.empty(CHUNK, weight.shape[0], device=weight.device)

    def _base_logits(self, hidden: Tensor) -> Tensor:
        if self.weight.dtype == torch.float32:
            return F.linear(hidden, self.weight)
        if hidden.device.type != "cpu":
            return torch.mm(hidden, self.weight.T, out_dtype=torch.float32)
        with _products_of_bf16():
            return F.linear(hidden.float(), self._wide)

    def logits(self, hidden: Tensor, adapter: HeadAdapter | None) -> Tensor:
        """[n, d] to [n, V] in fp32."""
        out = self._base_logits(hidden)
        return out if adapter is None else adapter.add(out, hidden)

    def logits_of(self, hidden: Tensor, segments: Sequence[Segment]) -> Tensor:
        """The same for rows of several adapters."""
        out = in_tiles(self._base_logits, hidden, DECODED)
        for s in segments:
            adapter = head_adapter(s)
            if adapter is not None:
                part = slice(s.start, s.end)
                filling = (0, 0, 0, -(s.end - s.start) % MIN_ROWS)
                filled = adapter.add(F.pad(out[part], filling), F.pad(hidden[part], filling))
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
            values = self.logits(hidden[part], adapter)
            wanted = values.gather(1, targets[part])
            top = values.amax(-1, keepdim=True)
            mass = values.sub_(top).exp_().sum(-1, keepdim=True)
            parts.append(wanted - (mass.log() + top))
            if active is not None and bool(active[part].any()):
                rows = active[part].nonzero().squeeze(1).to(hidden.device)
                softmax = values[rows].div_(mass[rows]).to(hidden.dtype)
                kept.append(_Kept(rows + first, softmax))
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
            d = self._scratch[: len(g)].copy_(k.probabilities).mul_(-g.sum(1, keepdim=True))
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
