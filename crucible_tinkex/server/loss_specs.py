"""What each loss needs, as data: read by `checks` (no torch) and by `losses` (the formulas)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class LossSpec:
    """`gate` is the input whose zeros stop gradients; `config` holds the settings' defaults."""

    required: tuple[str, ...]
    gate: str = ""
    config: Mapping[str, float] = field(default_factory=dict)


_POLICY = ("logprobs", "advantages")
_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
LOSS_SPECS: Mapping[str, LossSpec] = {
    "cross_entropy": LossSpec((WEIGHTS,), WEIGHTS),
    "importance_sampling": LossSpec(_POLICY, "advantages"),
    "ppo": LossSpec(_POLICY, "advantages", _CLIP),
    "cispo": LossSpec(_POLICY, "advantages", _CLIP),
    "dro": LossSpec(_POLICY, "", {"beta": 0.05}),
}
