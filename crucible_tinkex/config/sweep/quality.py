"""`[quality]`: what the best trial's metrics must reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from crucible_tinkex.config.section import Section
from crucible_tinkex.metrics import Direction

SEED_TARGETS: Mapping[str, float] = {
    "schema_compliance": 0.95,
    "citation_accuracy": 0.95,
    "mean_entailment": 0.50,
    "overall_pass_rate": 0.45,
}
"""Targets that are known by name: the primary ones."""
SECONDARY_TARGETS: Mapping[str, float] = {
    "entailment_pass_rate": 0.45,
    "similarity_pass_rate": 0.35,
}
TRAINING_TARGETS: Mapping[str, float] = {
    "loss_reduction": 0.95,
    "citation_invalid_rate": 0.0,
    "convergence_steps": 500,
}
"""On a training's own numbers (`training.progress`)."""
KNOWN_TARGETS: Mapping[str, float] = {**SEED_TARGETS, **SECONDARY_TARGETS, **TRAINING_TARGETS}
LEAST_STEPS: Mapping[str, int] = {"loss_reduction": 20, "convergence_steps": 10}
"""`min_n` of those, by default: steps."""


class QualityTarget(Section):
    """`{ target, direction, min_n }`."""

    target: float
    """The value to reach, in the metric's unit."""
    direction: Direction | None = None
    """Which way is better; by default the metric's own, else `max`."""
    min_n: int = Field(default=1, ge=1)
    """Rows (of a training's numbers: steps) below which nothing is settled."""


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | QualityTarget):
        return "table"
    return "word" if isinstance(value, str) else "number"


Target = Annotated[
    Annotated[float, Tag("number")]
    | Annotated[Literal["default"], Tag("word")]
    | Annotated[QualityTarget, Tag("table")],
    Discriminator(_kind),
]


class QualitySection(Section):
    """What the best trial must reach. A target is judged on the 95 % interval of its metric over
    the held-out rows: met or missed where all of it is on one side, not settled otherwise."""

    required: bool = False
    """End with exit code 1 where a target is missed."""
    targets: dict[str, Target] = Field(default_factory=dict)
    """Metric to a number, or to `{ target = .., direction = .., min_n = .. }`. `eval/` or
    `eval/score/` may be left out of its name. `"default"` is the known target of
    `schema_compliance`, `citation_accuracy` (0.95), `mean_entailment` (0.5), `overall_pass_rate`,
    `entailment_pass_rate` (0.45), `similarity_pass_rate` (0.35), or of the training
    `loss_reduction` (0.95), `convergence_steps` (500) and `citation_invalid_rate` (0)."""

    @field_validator("targets")
    @classmethod
    def _has_defaults(cls, targets: dict[str, Target]) -> dict[str, Target]:
        for name, target in targets.items():
            if target == "default" and name.rpartition("/")[2] not in KNOWN_TARGETS:
                raise ValueError(
                    f"{name!r} has no default target; {', '.join(KNOWN_TARGETS)} have one"
                )
        return targets

    @property
    def resolved(self) -> dict[str, QualityTarget]:
        """Each with its number."""
        return {name: _resolved(name, target) for name, target in self.targets.items()}


def _resolved(name: str, target: float | str | QualityTarget) -> QualityTarget:
    if isinstance(target, QualityTarget):
        return target
    short = name.rpartition("/")[2]
    value = KNOWN_TARGETS[short] if isinstance(target, str) else target
    return QualityTarget(target=value, min_n=LEAST_STEPS.get(short, 1))
