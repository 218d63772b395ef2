"""Learning-rate schedules: pure functions of the step, so that a resumed trial repeats them."""

from __future__ import annotations

import math

from crucible_tinkex.config import OptimizerSection
from crucible_tinkex.protocol.wire import AdamParams


def learning_rate(optimizer: OptimizerSection, *, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (1 to `total_steps`).

    Linear warm-up over `warmup_steps`, then constant, or linear or cosine decay towards 0 that
    would reach it one step after the last.
    """
    peak = optimizer.learning_rate
    if step <= optimizer.warmup_steps:
        return peak * step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return peak
    decay_steps = max(1, total_steps - optimizer.warmup_steps)
    done = (step - 1 - optimizer.warmup_steps) / decay_steps
    if optimizer.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def adam_params(optimizer: OptimizerSection, *, step: int, total_steps: int) -> AdamParams:
    """What is sent with optimizer step `step`."""
    return AdamParams(
        learning_rate=learning_rate(optimizer, step=step, total_steps=total_steps),
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        grad_clip_norm=optimizer.grad_clip_norm,
    )
