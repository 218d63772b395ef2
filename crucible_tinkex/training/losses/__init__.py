"""What a step may learn by: token weights, losses of the caller's own, and what hooks see of it."""

from crucible_tinkex.training.losses.custom import per_token
from crucible_tinkex.training.losses.gradient_hooks import GradientHooks
from crucible_tinkex.training.losses.registry import LossRegistry, default_losses
from crucible_tinkex.training.losses.schemes import Span, Weighing, WeightScheme

__all__ = [
    "GradientHooks",
    "LossRegistry",
    "Span",
    "Weighing",
    "WeightScheme",
    "default_losses",
    "per_token",
]
