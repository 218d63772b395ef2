"""Multi-LoRA linear layers: one frozen weight, and a different adapter for each stretch of rows.

A pass holds the tokens of several requests one after another, [1, M, d]; a `Segment` says which
stretch belongs to which adapter. The base is one GEMM over all M tokens; each adapter adds
`scale * (x @ A) @ B` on its own stretch. Gradients go straight into views of the adapter's flat
gradient: no stacking, no zero-filled slices.
Guarantees: what a segment gets depends on its own tokens only (its LoRA products have the shape of
the segment; the rows of a base GEMM do not depend on how many there are, which the tests verify);
rank columns beyond an adapter's rank stay exactly 0, because both of their gradients are 0.
Not here: the output layer (`head`), whose logits are never kept whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crucible_tinkex.server.operations import LoraSpec

RANK_BUCKETS = (8, 16, 32, 64, 128, 256)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Slot(NamedTuple):
    """One linear layer that can carry an adapter."""

    name: str
    d_in: int
    d_out: int

    @property
    def kind(self) -> str:
        return self.name.rsplit(".", 1)[-1]


class Place(NamedTuple):
    """Where a slot's A [d_in, r] and B [r, d_out] begin in an adapter's flat vector."""

    slot: Slot
    a: int
    b: int


class Layout:
    """How the parameters of one kind of adapter (rank bucket and targets) lie in a flat vector."""

    def __init__(self, slots: Sequence[Slot], spec: LoraSpec) -> None:
        self.rank = next(b for b in RANK_BUCKETS if b >= spec.rank)
        self.places: list[Place | None] = []
        offset = 0
        for slot in slots:
            if not _wanted(slot, spec):
                self.places.append(None)
                continue
            b = offset + slot.d_in * self.rank
            self.places.append(Place(slot, offset, b))
            offset = b + self.rank * slot.d_out
        self.size = offset

    def views(self, flat: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """A and B of every slot, as views of `flat`; None where there is no adapter."""
        r = self.rank
        return [
            p
            and (
                flat[p.a : p.b].view(p.slot.d_in, r),
                flat[p.b : p.b + r * p.slot.d_out].view(r, p.slot.d_out),
            )
            for p in self.places
        ]


def _wanted(slot: Slot, spec: LoraSpec) -> bool:
    if slot.kind in ATTENTION:
        return spec.train_attn
    if slot.kind in MLP:
        return spec.train_mlp
    return spec.train_unembed


def initial_weights(layout: Layout, spec: LoraSpec) -> Tensor:
    """A uniform in +-1/sqrt(d_in), peft's default, from the seed; B zero: equal to the base."""
    flat = torch.zeros(layout.size)
    generator = torch.Generator().manual_seed(spec.seed)
    for place, views in zip(layout.places, layout.views(flat), strict=True):
        if place is None or views is None:
            continue
        bound = place.slot.d_in**-0.5
        drawn = torch.rand(spec.rank, place.slot.d_in, generator=generator) * (2 * bound) - bound
        views[0][:, : spec.rank].copy_(drawn.T)
    return flat


@dataclass(slots=True)
class Segment:
    """Tokens `start` to `end` of a pass belong to one adapter; `grads` None: no backward."""

    start: int
    end: int
    scale: float
    weights: Sequence[tuple[Tensor, Tensor] | None]
    grads: Sequence[tuple[Tensor, Tensor] | None] | None = None


@dataclass(slots=True)
class PassContext:
    """The segments of the pass that is running; shared by all layers of one model."""

    segments: list[Segment] = field(default_factory=list)
    anchor: Tensor | None = None
    """A dummy leaf that requires grad, so that backward reaches the first layer."""


class MultiLoraLinear(nn.Module):
    """A frozen `nn.Linear` plus the adapters of the running pass."""

    def __init__(self, linear: nn.Linear, slot_index: int, context: PassContext) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._slot_index = slot_index
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        context = self._context
        if context.anchor is None:
            return _forward(x, self.weight, self.bias, context.segments, self._slot_index)[0]
        out: Tensor = _Trained.apply(  # type: ignore[no-untyped-call]
            x, context.anchor, self.weight, self.bias, context.segments, self._slot_index
        )
        return out


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Sequence[Segment], index: int
) -> tuple[Tensor, list[Tensor | None]]:
    y = F.linear(x, weight, bias)
    inner: list[Tensor | None] = []
    for s in segments:
        pair = s.weights[index]
        if pair is None:
            inner.append(None)
            continue
        u = x[0, s.start : s.end] @ pair[0]
        y[0, s.start : s.end].addmm_(u, pair[1], alpha=s.scale)
        inner.append(u)
    return y, inner


class _Trained(torch.autograd.Function):
    """The same, with a backward that adds to the adapters' gradients and returns only dx."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        segments: Sequence[Segment],
        index: int,
    ) -> Tensor:
        y, inner = _forward(x, weight, bias, segments, index)
        ctx.save_for_backward(x, weight)
        ctx.inner, ctx.segments, ctx.index = inner, segments, index
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gx = gy @ weight if ctx.needs_input_grad[0] else None
        for s, u in zip(ctx.segments, ctx.inner, strict=True):
            pair, grads = s.weights[ctx.index], s.grads and s.grads[ctx.index]
            if pair is None or grads is None:
                continue
            g = gy[0, s.start : s.end]
            du = (g @ pair[1].T).mul_(s.scale)
            grads[1].add_(u.T @ g, alpha=s.scale)
            grads[0].add_(x[0, s.start : s.end].T @ du)
            if gx is not None:
                gx[0, s.start : s.end].addmm_(du, pair[0].T)
        return gx, None, None, None, None, None


def wrap_linears(body: nn.Module, context: PassContext) -> list[Slot]:
    """Replace every target linear of `body`; the slots are in the order of the layers."""
    slots: list[Slot] = []
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ATTENTION + MLP:
            parent = body.get_submodule(name.rpartition(".")[0])
            wrapped = MultiLoraLinear(module, len(slots), context)
            setattr(parent, name.rpartition(".")[2], wrapped)
            slots.append(Slot(name, module.in_features, module.out_features))
    return slots
