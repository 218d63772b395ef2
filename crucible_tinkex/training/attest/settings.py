"""All that a service is asked to apply to a short-lived model, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crucible_tinkex.client.interface import CROSS_ENTROPY
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig

STRONG: Mapping[str, tuple[float, float]] = {
    "learning_rate": (2e-3, 2.5e-4),
    "beta1": (0.9, 0.1),
    "beta2": (0.95, 0.1),
    "eps": (1e-12, 1.0),
    "weight_decay": (0.0, 50.0),
    "grad_clip_norm": (0.0, 1e-8),
}
"""The values of a contrast in the optimizer; the first is that of all other models."""
OFF_POLICY = (0.5, 0.5, -0.5, -0.5)
ADVANTAGES = (1.0, -1.0, 1.0, -1.0)
"""With these every fourth token has a ratio of e^.5 or e^-.5, outside of the usual clipping, and an
advantage of either sign: losses that are equal on data of the model's own differ at once."""


@dataclass(frozen=True)
class Settings:
    """Of one model and its two steps. Tuples are taken in turn by the learnt tokens of a batch."""

    rank: int
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    learning_rate: float = STRONG["learning_rate"][0]
    beta1: float = STRONG["beta1"][0]
    beta2: float = STRONG["beta2"][0]
    eps: float = STRONG["eps"][0]
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
    last_share: float = 1.0
    """Of the learning rate, at the second step."""
    accumulate: int = 1
    """Passes before each optimizer step: with 2, the other batch goes first."""
    weights: tuple[float, ...] = (1.0,)
    loss: str = CROSS_ENTROPY
    loss_config: tuple[tuple[str, float], ...] = ()
    drifts: tuple[float, ...] = OFF_POLICY
    """Of a loss on samples: log p of the model before its steps, less that of the sampler."""
    advantages: tuple[float, ...] = ADVANTAGES

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(**{name: getattr(self, name) for name in LoraConfig.model_fields})

    @property
    def is_policy(self) -> bool:
        """Whether its loss needs samples' logprobs and advantages."""
        return self.loss != CROSS_ENTROPY

    def having(self, **changed: Any) -> Settings:
        """With other values."""
        return replace(self, **changed)

    def adam(self, step: int) -> AdamParams:
        """Of step 0 or 1."""
        found = AdamParams(**{name: getattr(self, name) for name in AdamParams.model_fields})
        rate = self.learning_rate * (self.last_share if step else 1.0)
        return found.model_copy(update={"learning_rate": rate})
