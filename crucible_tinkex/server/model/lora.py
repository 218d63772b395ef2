"""Multi-LoRA linear layers: one frozen weight, and a different adapter for each stretch of rows.

A pass holds the tokens of several requests one after another, [1, M, d]; a `Segment` says which
stretch belongs to which adapter. The base's product is over all M tokens; each adapter adds
`scale * (x @ A) @ B` on its own stretch. Neighbouring segments of one size and layout form a
`Stack`: in fp32 their products are one batch, which costs a fifth of as many small ones.
Guarantees: what a segment gets depends on its own tokens only (its LoRA products have the shape of
the segment, the base's are made of tiles of one size, see `products`, and the members of a batch of
products are made one by one where they would depend on how many there are); rank columns beyond an
adapter's rank stay exactly 0, because both of their gradients are 0.
Not here: the output layer (`head`), whose logits are never kept whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crucible_tinkex.server.model.products import PACKED, add_each, each, tiled
from crucible_tinkex.server.operations import HEAD, LoraSpec

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
        head = self.places[-1] if slots[-1].name == HEAD else None
        self.body_size = offset if head is None else head.a
        """The parameters before those of the output layer."""

    def views(self, flat: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """A and B of every slot, as views of `flat` [..., size]; None where there is no adapter."""
        return [None if p is None else self._pair(flat, p) for p in self.places]

    def body_views(self, flat: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """The same without the output layer, of `flat` [..., body_size]."""
        return [
            None if p is None or p.a >= self.body_size else self._pair(flat, p) for p in self.places
        ]

    def head_views(self, flat: Tensor) -> tuple[Tensor, Tensor] | None:
        """A and B of the output layer, as views of `flat` [size]."""
        last = self.places[-1]
        return None if last is None or last.a < self.body_size else self._pair(flat, last)

    def _pair(self, flat: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        r, (slot, a, b), many = self.rank, place, flat.shape[:-1]
        first = flat[..., a:b].view(*many, slot.d_in, r)
        return first, flat[..., b : b + r * slot.d_out].view(*many, r, slot.d_out)


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
    """Tokens `start` to `end` of a pass belong to one adapter."""

    start: int
    end: int
    scale: float
    layout: Layout
    flat: Tensor
    """Its weights in the computing dtype."""
    grad: Tensor | None = None
    """Its gradient, fp32; None: no backward."""


class Stack:
    """Neighbouring segments of one size and layout, and their weights side by side.

    Weights are copied here, unless there is one segment only: a stack is good until one of its
    adapters changes. Gradients gather here, [segments, body_size], until `collect`.
    `filling`, for passes without backward, fills every segment up to a multiple of so many rows, in
    the adapters' products only.
    """

    def __init__(self, segments: Sequence[Segment], filling: int = 1) -> None:
        first = segments[0]
        self._segments = segments
        self._layout = first.layout
        self.count = len(segments)
        self.start, self.end = first.start, segments[-1].end
        self.scale = first.scale
        self._filled: tuple[Tensor, Tensor] | None = None
        if any((s.end - s.start) % filling for s in segments):
            self._filled = _filled(segments, filling)
        size = self._layout.body_size
        weights = first.flat[None, :size] if self.count == 1 else _side_by_side(segments, size)
        self.weights = self._layout.body_views(weights)
        self.grads: list[tuple[Tensor, Tensor] | None] = []
        self._grad: Tensor | None = None
        if first.grad is not None:
            self._grad = torch.zeros_like(weights)
            self.grads = self._layout.body_views(self._grad)

    def rows(self, x: Tensor) -> Tensor:
        """This stack's part of [1, M, d] as [segments, tokens, d]; a view if `x` is contiguous."""
        return x[0, self.start : self.end].reshape(self.count, -1, x.shape[2])

    def add(self, y: Tensor, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Add the adapters' share to this stack's part of `y`, [1, M, d_out], in place; returns
        x @ A, which backward needs."""
        if self._filled is None:
            u = each(self.rows(x), pair[0])
            add_each(self.rows(y), u, pair[1], self.scale)
            return u
        taken, real = self._filled
        rows = x[0].index_select(0, taken).view(self.count, -1, x.shape[2])
        out = y[0].index_select(0, taken).view(self.count, -1, y.shape[2])
        u = each(rows, pair[0])
        add_each(out, u, pair[1], self.scale)
        y[0, self.start : self.end] = out.view(-1, y.shape[2]).index_select(0, real)
        return u

    def collect(self) -> None:
        """Add the gradients of one backward to the adapters'. Allocates nothing: cannot fail."""
        if self._grad is None:
            return
        for segment, own in zip(self._segments, self._grad, strict=True):
            if segment.grad is not None:
                segment.grad[: self._layout.body_size].add_(own)


def _side_by_side(segments: Sequence[Segment], size: int) -> Tensor:
    """[segments, size]; every row begins on a boundary of 64 elements, as a tensor of its own does
    on one of 64 bytes, because kernels may go by alignment."""
    flat = segments[0].flat
    out = flat.new_empty(len(segments), -(-size // 64) * 64)[:, :size]
    for row, segment in zip(out, segments, strict=True):
        row.copy_(segment.flat[:size])
    return out


def _filled(segments: Sequence[Segment], filling: int) -> tuple[Tensor, Tensor]:
    """Which rows of the line a filled stack takes (the filling repeats a segment's first), and
    where in it the real ones are."""
    taken: list[int] = []
    real: list[int] = []
    for s in segments:
        rows = range(s.start, s.end)
        real += range(len(taken), len(taken) + len(rows))
        taken += [*rows, *[s.start] * (-len(rows) % filling)]
    device = segments[0].flat.device
    return torch.tensor(taken, device=device), torch.tensor(real, device=device)


def stacked(segments: Sequence[Segment], filling: int = 1) -> list[Stack]:
    """The segments, in the order of their tokens, as stacks."""

    def kind(s: Segment) -> tuple[int, int, float, bool]:
        return id(s.layout), -((s.start - s.end) // filling), s.scale, s.grad is not None

    groups = [list(group) for _, group in groupby(segments, key=kind)]
    return [Stack(part, filling) for group in groups for part in _unbroken(group)]


def _unbroken(segments: list[Segment]) -> list[list[Segment]]:
    """Cut where tokens without an adapter lie between two segments."""
    out: list[list[Segment]] = []
    for segment in segments:
        if out and out[-1][-1].end == segment.start:
            out[-1].append(segment)
        else:
            out.append([segment])
    return out


@dataclass(slots=True)
class PassContext:
    """The adapters of the pass that is running; shared by all layers of one model."""

    stacks: Sequence[Stack] = ()
    anchor: Tensor | None = None
    """A dummy leaf that requires grad, so that backward reaches the first layer."""
    tile: int = PACKED
    """Rows of the base's products (`products`)."""


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
            return _forward(x, self.weight, self.bias, context, self._slot_index)[0]
        out: Tensor = _Trained.apply(  # type: ignore[no-untyped-call]
            x, context.anchor, self.weight, self.bias, context, self._slot_index
        )
        return out


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, context: PassContext, index: int
) -> tuple[Tensor, list[Tensor | None]]:
    y = tiled(x[0], weight.T, context.tile)[None]
    if bias is not None:
        y += bias
    inner: list[Tensor | None] = []
    for s in context.stacks:
        pair = s.weights[index]
        if pair is None:
            inner.append(None)
            continue
        inner.append(s.add(y, x, pair))
    return y, inner


class _Trained(torch.autograd.Function):
    """The same, with a backward that fills the stacks' gradients and returns only dx."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        context: PassContext,
        index: int,
    ) -> Tensor:
        y, inner = _forward(x, weight, bias, context, index)
        ctx.save_for_backward(x, weight)
        ctx.inner, ctx.stacks, ctx.index = inner, context.stacks, index
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gx = tiled(gy[0], weight, PACKED)[None] if ctx.needs_input_grad[0] else None
        for s, u in zip(ctx.stacks, ctx.inner, strict=True):
            pair = s.weights[ctx.index]
            if pair is None:
                continue
            into_a, into_b = s.grads[ctx.index]
            g = s.rows(gy)
            du = each(g, pair[1].mT).mul_(s.scale)
            add_each(into_b, u.mT, g, s.scale)
            add_each(into_a, s.rows(x).mT, du)
            if gx is not None:
                add_each(s.rows(gx), du, pair[0].mT)
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
