"""One adapter's state: flat fp32 weights, gradient, Adam's moments and step count.

Guarantees: gradients accumulate until `step`, which zeroes them; AdamW with decoupled weight decay
and bias correction by this adapter's own count; the padded part of the vector stays 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crucible_tinkex.server.lora import Layout, Segment
from crucible_tinkex.server.operations import ALPHA, Adam, LoraSpec


class Adapter:
    """Weights that can be trained; `compute_dtype` is what passes use."""

    def __init__(
        self, spec: LoraSpec, layout: Layout, weights: Tensor, compute_dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.weights = weights
        self.grad = torch.zeros_like(weights)
        self.m = torch.zeros_like(weights)
        self.v = torch.zeros_like(weights)
        self.steps = 0
        self._frozen = FrozenAdapter(spec, layout, weights, compute_dtype)

    @property
    def size_bytes(self) -> int:
        return 4 * self.weights.nbytes + self._frozen.size_bytes

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
        self.grad.zero_()
        self.m.zero_() if m is None else self.m.copy_(m)
        self.v.zero_() if v is None else self.v.copy_(v)
        self.steps = steps
        self._frozen.refresh(self.weights)

    def step(self, adam: Adam) -> dict[str, float]:
        """One AdamW update from the accumulated gradient, which is then zeroed."""
        norm = float(torch.linalg.vector_norm(self.grad))
        if adam.grad_clip_norm > 0 and norm > adam.grad_clip_norm:
            self.grad.mul_(adam.grad_clip_norm / norm)
        self.steps += 1
        self.m.lerp_(self.grad, 1 - adam.beta1)
        self.v.mul_(adam.beta2).addcmul_(self.grad, self.grad, value=1 - adam.beta2)
        scale1 = 1 - adam.beta1**self.steps
        scale2 = 1 - adam.beta2**self.steps
        denominator = self.v.sqrt().mul_(scale2**-0.5).add_(adam.eps)
        if adam.weight_decay:
            self.weights.mul_(1 - adam.learning_rate * adam.weight_decay)
        self.weights.addcdiv_(self.m, denominator, value=-adam.learning_rate / scale1)
        self.grad.zero_()
        self._frozen.refresh(self.weights)
        return {"grad_norm": norm}


class FrozenAdapter:
    """Weights in the computing dtype, for passes without backward."""

    def __init__(
        self, spec: LoraSpec, layout: Layout, weights: Tensor, compute_dtype: torch.dtype
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.scale = ALPHA / spec.rank
        self.flat = weights.to(compute_dtype, copy=True)

    @property
    def size_bytes(self) -> int:
        return int(self.flat.nbytes)

    def refresh(self, weights: Tensor) -> None:
        self.flat.copy_(weights)

    def copy(self) -> FrozenAdapter:
        """An independent snapshot."""
        return FrozenAdapter(self.spec, self.layout, self.flat, self.flat.dtype)

    def segment(self, start: int, end: int) -> Segment:
        return Segment(start, end, self.scale, self.layout, self.flat)
