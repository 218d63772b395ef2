"""Training requests cut into chunks, and passes that run chunks of several models together.

A request is cut into chunks of whole rows by a rule that looks at nothing but the request: rows by
length, filled up to the token cap. A pass takes one chunk of each of several requests; what a
chunk computes, and the order in which a request's chunks add to its gradient, do not depend on the
company (see `lora`, `attention`, `head`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crucible_tinkex.server.engine import losses
from crucible_tinkex.server.model.adapters import Adapter
from crucible_tinkex.server.model.attention import BUCKET, Block, PackedPlan, round_up
from crucible_tinkex.server.model.base_model import MIN_TOKENS, BaseModel
from crucible_tinkex.server.model.head import HeadAdapter, head_adapter
from crucible_tinkex.server.model.lora import Segment, stacked
from crucible_tinkex.server.operations import (
    FloatArray,
    ForwardBackward,
    ForwardOutput,
    IntArray,
    Row,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one request, packed into a line whose length is a multiple of `BUCKET`."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens of each row in the line; the last one includes the filling."""
    tokens: Tensor
    positions: Tensor
    targets: Tensor
    """[tokens, K]"""
    inputs: dict[str, Tensor]
    """[tokens], or [tokens, K] where K targets per token have numbers of their own."""

    @property
    def size(self) -> int:
        return len(self.tokens)


class TrainingWork:
    """One forward or forward_backward request on its way through passes."""

    def __init__(self, operation: ForwardBackward, token_cap: int) -> None:
        self.operation = operation
        self._groups = _cut([len(r.tokens) for r in operation.rows], token_cap)
        self._width = max(_width(r) for r in operation.rows)
        self._next = 0
        self._logprobs: list[FloatArray | None] = [None] * len(operation.rows)
        self._loss = 0.0
        self._chunk: Chunk | None = None
        self._has_begun = False
        self._backup: Tensor | None = None

    @property
    def chunk(self) -> Chunk:
        """The present one."""
        if self._chunk is None:
            numbers = self._groups[self._next]
            rows = [self.operation.rows[i] for i in numbers]
            self._chunk = pack(numbers, rows, self._width)
        return self._chunk

    def begin(self, adapter: Adapter) -> None:
        """Before a chunk: keep what `undo` needs, if it is the first."""
        if not self._has_begun and self.operation.backward:
            self._backup = adapter.backup_grad()
            self._has_begun = True

    def undo(self, adapter: Adapter) -> None:
        """The request has failed: the gradient is what it was before it."""
        if self._has_begun:
            adapter.restore_grad(self._backup)

    def split(self, logprobs: Tensor) -> list[FloatArray]:
        """The present chunk's log-probabilities by row."""
        values = logprobs.cpu().numpy()
        out = []
        first = 0
        for number in self.chunk.rows:
            row = self.operation.rows[number]
            n = len(row.tokens)
            own = values[first : first + n]
            out.append((own[:, 0] if row.targets.ndim == 1 else own[:, : _width(row)]).copy())
            first += n
        return out

    def add(self, rows: Sequence[FloatArray], loss: float) -> None:
        """Take the results of the present chunk and go on to the next."""
        for number, values in zip(self.chunk.rows, rows, strict=True):
            self._logprobs[number] = values
        self._loss += loss
        self._next += 1
        self._chunk = None

    def output(self) -> ForwardOutput | None:
        """None: there are more chunks."""
        if self._next < len(self._groups):
            return None
        rows = tuple(p for p in self._logprobs if p is not None)
        return ForwardOutput(rows, {"loss:sum": self._loss})


def _cut(lengths: Sequence[int], token_cap: int) -> list[tuple[int, ...]]:
    groups: list[tuple[int, ...]] = []
    current: list[int] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if current and total + lengths[number] > token_cap:
            groups.append(tuple(current))
            current, total = [], 0
        current.append(number)
        total += lengths[number]
    return [*groups, tuple(current)]


def _width(row: Row) -> int:
    return 1 if row.targets.ndim == 1 else row.targets.shape[1]


def pack(numbers: tuple[int, ...], rows: Sequence[Row], width: int) -> Chunk:
    """`width` is the largest number of targets per token; missing ones are token 0, weight 0."""
    lengths = [len(r.tokens) for r in rows]
    real = sum(lengths)
    filling = max(round_up(real, BUCKET), MIN_TOKENS) - real
    lengths[-1] += filling
    tail = np.zeros(filling, np.int64)
    names = rows[0].inputs.keys()
    return Chunk(
        rows=numbers,
        lengths=tuple(lengths),
        tokens=torch.from_numpy(np.concatenate([*(r.tokens for r in rows), tail])),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        targets=_stack([r.targets for r in rows], filling, width).view(-1, width),
        inputs={name: _stack([r.inputs[name] for r in rows], filling, width) for name in names},
    )


def _stack(parts: Sequence[IntArray] | Sequence[FloatArray], filling: int, width: int) -> Tensor:
    """One after another and filled up with zeros: [tokens], or [tokens, width] if any has two
    dimensions and `width` is more than 1."""
    if width == 1:
        flat = [p.reshape(-1) for p in parts]
        return torch.from_numpy(np.concatenate([*flat, np.zeros(filling, parts[0].dtype)]))
    out = np.zeros((sum(map(len, parts)) + filling, width), parts[0].dtype)
    first = 0
    for part in parts:
        wide = part if part.ndim == 2 else part[:, None]
        out[first : first + len(part), : wide.shape[1]] = wide
        first += len(part)
    return torch.from_numpy(out)


def run_pass(model: BaseModel, parts: Sequence[tuple[TrainingWork, Adapter]]) -> None:
    """Run the present chunk of every request in one pass. All or none of them want backward. If it
    raises, no gradient has changed and every request is at the chunk where it was."""
    parts = sorted(parts, key=_likeness)
    backward = parts[0][0].operation.backward
    segments: list[Segment] = []
    start = 0
    for work, adapter in parts:
        end = start + work.chunk.size
        work.begin(adapter)
        segments.append(adapter.segment(start, end, backward=backward))
        start = end
    stacks = stacked(segments)
    hidden = model.hidden(
        torch.cat([w.chunk.tokens for w, _ in parts]),
        torch.cat([w.chunk.positions for w, _ in parts]),
        PackedPlan(Block.of_all([w.chunk.lengths for w, _ in parts])),
        stacks,
        backward=backward,
    )
    heads = [head_adapter(segment) for segment in segments]
    grad = torch.empty_like(hidden) if backward else None
    results = [
        _finish(model, work, hidden, segment, head, grad)
        for (work, _), segment, head in zip(parts, segments, heads, strict=True)
    ]
    rows = [work.split(logprobs) for (work, _), (logprobs, _) in zip(parts, results, strict=True)]
    if grad is not None:
        model.backward(hidden, grad)
    for gradients in [*stacks, *heads]:
        if gradients is not None:
            gradients.collect()
    for (work, _), own, (_, loss) in zip(parts, rows, results, strict=True):
        work.add(own, loss)


def _likeness(part: tuple[TrainingWork, Adapter]) -> tuple[int, ...]:
    """Brings together what can be computed as one batch of products (`Stack`, `Block.of_all`)."""
    chunk, adapter = part[0].chunk, part[1]
    return chunk.size, round_up(max(chunk.lengths)), adapter.layout.size, adapter.spec.rank


def _finish(
    model: BaseModel,
    work: TrainingWork,
    hidden: Tensor,
    segment: Segment,
    adapter: HeadAdapter | None,
    grad: Tensor | None,
) -> tuple[Tensor, float]:
    """Log-probabilities and loss of one request's part; fills its part of `grad`."""
    operation, chunk = work.operation, work.chunk
    part = hidden.detach()[segment.start : segment.end]
    active = losses.active_tokens(operation.loss_fn, chunk.inputs) if grad is not None else None
    if active is not None:
        active[len(active) - _filling(work) :] = False
    targets = chunk.targets.to(model.device)
    inputs = {name: values.to(model.device) for name, values in chunk.inputs.items()}
    logprobs, kept = model.head.logprobs(part, targets, adapter, active)
    leaf = logprobs.clone().requires_grad_(grad is not None)
    real = chunk.size - _filling(work)
    per_token = losses.token_losses(
        operation.loss_fn,
        leaf if leaf.shape[1] > 1 else leaf[:, 0],
        inputs,
        operation.loss_config,
        chunk.lengths,
    )
    loss = per_token[:real].sum()
    if grad is not None:
        (slope,) = torch.autograd.grad(loss, leaf)
        grad[segment.start : segment.end] = model.head.backward(part, targets, slope, adapter, kept)
    return logprobs[:real], float(loss.detach())


def _filling(work: TrainingWork) -> int:
    return work.chunk.size - sum(len(work.operation.rows[i].tokens) for i in work.chunk.rows)
