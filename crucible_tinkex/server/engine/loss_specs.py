"""What each loss needs, as data: read by `checks` (no torch) and by `losses` (the formulas)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WEIGHTS = "weights"
RATIO_MASK = "sequence_ratio_mask"
CLIP_LOW, CLIP_HIGH = "clip_low_threshold", "clip_high_threshold"


@dataclass(frozen=True, slots=True)
class LossSpec:
    """`gate` is the input whose zeros stop gradients; `config` holds the settings' defaults.

    A setting may also come as an input of one value per token; `is_wide` losses take several
    targets per token."""

    required: tuple[str, ...]
    gate: str = ""
    config: Mapping[str, float] = field(default_factory=dict)
    is_wide: bool = False


_POLICY = ("logprobs", "advantages")
_CLIP = {CLIP_LOW: 0.8, CLIP_HIGH: 1.2}
LOSS_SPECS: Mapping[str, LossSpec] = {
    "cross_entropy": LossSpec((WEIGHTS,), WEIGHTS, is_wide=True),
    "importance_sampling": LossSpec(_POLICY, "advantages"),
    "ppo": LossSpec(_POLICY, "advantages", _CLIP),
    "cispo": LossSpec(_POLICY, "advantages", _CLIP),
    "dro": LossSpec(_POLICY, "", {"beta": 0.05}),
    "gspo": LossSpec((*_POLICY, RATIO_MASK), "advantages", _CLIP),
}
