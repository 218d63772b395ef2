"""One adapter's state: flat fp32 weights, gradient, Adam's moments and step count.

Guarantees: gradients accumulate until `step`, which drops them, so that an adapter between two
steps takes 12 bytes per parameter, and 2 more where passes compute in bf16; AdamW with decoupled
weight decay and bias correction by this adapter's own count; the padded part of the vector stays 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crucible_tinkex.server.model.lora import Layout, Segment
from crucible_tinkex.server.operations import ALPHA, Adam, LoraSpec


class Adapter:
    """Weights that can be trained; `compute_dtype` is what passes use."""

    def __init__(
        self, spec: LoraSpec, layout: Layout, weights: Tensor, compute_dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.weights = weights
        self._grad: Tensor | None = None
        self.m = torch.zeros_like(weights)
        self.v = torch.zeros_like(weights)
        self.steps = 0
        self._frozen = FrozenAdapter(spec, layout, weights, compute_dtype)

    @property
    def size_bytes(self) -> int:
        """At this moment."""
        vectors = 3 if self._grad is None else 4
        own = 0 if self._frozen.flat is self.weights else self._frozen.size_bytes
        return vectors * self.weights.nbytes + own

    @property
    def grad(self) -> Tensor:
        """fp32, zeros after a step; made when it is first asked for."""
        if self._grad is None:
            self._grad = torch.zeros_like(self.weights)
        return self._grad

    @property
    def has_grad(self) -> bool:
        """Whether there may be anything but zeros in it."""
        return self._grad is not None

    def drop_grad(self) -> None:
        self._grad = None

    def backup_grad(self) -> Tensor | None:
        """A copy of the gradient, or None if there is none; for `restore_grad`."""
        return None if self._grad is None else self._grad.clone()

    def restore_grad(self, backup: Tensor | None) -> None:
        self._grad = backup

    def frozen(self) -> FrozenAdapter:
        """The weights of this moment in the computing dtype; changed in place by `step`."""
        return self._frozen

    def segment(self, start: int, end: int, *, backward: bool) -> Segment:
        out = self._frozen.segment(start, end)
        out.grad = self.grad if backward else None
        return out

    def restore(self, weights: Tensor, m: Tensor | None, v: Tensor | None, steps: int) -> None:
        """Take over a checkpoint; without moments the optimizer starts anew."""
        self.weights.copy_(weights)
        self.drop_grad()
        self.m.zero_() if m is None else self.m.copy_(m)
        self.v.zero_() if v is None else self.v.copy_(v)
        self.steps = steps
        self._frozen.refresh(self.weights)

    def step(self, adam: Adam) -> dict[str, float]:
        """One AdamW update from the accumulated gradient, which is then dropped."""
        grad = self.grad
        norm = float(torch.linalg.vector_norm(grad))
        if adam.grad_clip_norm > 0 and norm > adam.grad_clip_norm:
            grad.mul_(adam.grad_clip_norm / norm)
        self.steps += 1
        self.m.lerp_(grad, 1 - adam.beta1)
        self.v.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
        scale1 = 1 - adam.beta1**self.steps
        scale2 = 1 - adam.beta2**self.steps
        denominator = self.v.sqrt().mul_(scale2**-0.5).add_(adam.eps)
        if adam.weight_decay:
            self.weights.mul_(1 - adam.learning_rate * adam.weight_decay)
        self.weights.addcdiv_(self.m, denominator, value=-adam.learning_rate / scale1)
        self.drop_grad()
        self._frozen.refresh(self.weights)
        return {"grad_norm": norm}


class FrozenAdapter:
    """Weights in the computing dtype, for passes without backward; `weights` itself, not a copy,
    where that is their dtype already."""

    def __init__(
        self, spec: LoraSpec, layout: Layout, weights: Tensor, compute_dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.scale = ALPHA / spec.rank
        self.flat = weights.to(compute_dtype)

    @property
    def size_bytes(self) -> int:
        return int(self.flat.nbytes)

    def refresh(self, weights: Tensor) -> None:
        if self.flat is not weights:
            self.flat.copy_(weights)

    def copy(self) -> FrozenAdapter:
        """An independent snapshot."""
        return FrozenAdapter(self.spec, self.layout, self.flat.clone(), self.flat.dtype)

    def segment(self, start: int, end: int) -> Segment:
        return Segment(start, end, self.scale, self.layout, self.flat)
