"""Which keys a sweep may vary, and the form in which their values are declared.

Guarantees: a key that may vary decides the numbers of a trial, so two points are two trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from crucible_tinkex.config.section import Section
from crucible_tinkex.config.trial.data import DataSection
from crucible_tinkex.config.trial.evaluation import EvaluationSection
from crucible_tinkex.config.trial.model import NOT_APPLIED, LoraSection
from crucible_tinkex.config.trial.train import OptimizerSection, TrainSection
from crucible_tinkex.errors import ConfigError, did_you_mean

SECTIONS = ("lora", "optimizer", "train", "model", "data", "evaluation", "service", "run")
"""First parts of dotted keys."""
AXIS_SECTIONS: Mapping[str, type[Section]] = {
    "lora": LoraSection,
    "optimizer": OptimizerSection,
    "train": TrainSection,
    "data": DataSection,
}
_ONE_READING = (
    "all rows, those held out too, are read and tokenised one way, or trials could not be ranked; "
    "run one sweep for each"
)
_ONE_QUESTION = "trials that answer different questions cannot be ranked; run one sweep for each"
FIXED: Mapping[str, str] = {
    **dict.fromkeys(NOT_APPLIED, "the Tinker API does not apply it"),
    "train.max_length": "the rows are tokenised once, for all trials",
    **dict.fromkeys(
        ("data.format", "data.corpus", "data.train_on", "data.too_long", "model.tokenizer"),
        _ONE_READING,
    ),
    "data.sets": "it names what `data.train` may be",
    **dict.fromkeys(
        (
            *("data.eval", "data.eval_fraction", "data.eval_rows", "data.eval_seed"),
            "model.base",
            *(f"evaluation.{name}" for name in EvaluationSection.model_fields),
        ),
        _ONE_QUESTION,
    ),
    **dict.fromkeys(("service.base_url", "service.dtype"), _ONE_QUESTION),
    "train.eval_every": "it says when something is measured, and changes no number",
    "train.checkpoint_every": "it says when something is saved, and changes no number",
    "train.sampler_checkpoint": "it says what is saved, and changes no number",
    "train.submit_ahead": "it says when something is sent, and changes no number",
}
"""Keys that cannot vary, and why."""
NUMBERS = "train.weight_config"
"""A table whose numbers, whatever their names, may vary each: `train.weight_config.NAME`."""


class AxisRange(Section):
    """`{ low, high, log, count }`: a grid takes `count` points, sampled strategies draw from it."""

    low: float
    """The smallest value, included."""
    high: float
    """The largest value, included."""
    log: bool = False
    """Evenly spread over orders of magnitude."""
    count: int | None = Field(default=None, ge=1, le=10_000)
    """Points of a grid."""
    integer: bool = False
    """Round to whole numbers (always, where the key takes whole numbers only)."""

    @model_validator(mode="after")
    def _ordered(self) -> AxisRange:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a log range needs low > 0")
        return self


AxisValue = bool | int | float | str


def _kind(value: Any) -> str:
    return "range" if isinstance(value, dict | AxisRange) else "values"


Axis = Annotated[
    Annotated[tuple[AxisValue, ...], Tag("values")] | Annotated[AxisRange, Tag("range")],
    Discriminator(_kind),
]


@cache
def axis_keys() -> Mapping[str, Any]:
    """Every dotted key that a sweep may vary, with its annotation."""
    keys = {
        f"{name}.{field}": info.annotation
        for name, section in AXIS_SECTIONS.items()
        for field, info in section.model_fields.items()
    }
    return {key: annotation for key, annotation in keys.items() if key not in (*FIXED, NUMBERS)}


def check_axes(keys: Iterable[str], *, where: str = "search.space") -> None:
    """Raise `ConfigError` for a key that cannot vary, naming those that can."""
    legal = axis_keys()
    for key in keys:
        if key.startswith(f"{NUMBERS}."):
            continue
        if key in FIXED:
            raise ConfigError(f"{where}: {key!r} cannot vary: {FIXED[key]}")
        if key not in legal:
            hint = did_you_mean(key, legal)
            raise ConfigError(
                f"{where}: unknown axis {key!r}; {hint}legal: {', '.join(sorted(legal))}, "
                f"{NUMBERS}.NAME"
            )


def is_integer(key: str, axis: AxisRange) -> bool:
    """Whether the axis yields whole numbers."""
    annotation = str(axis_keys().get(key))
    return axis.integer or ("int" in annotation and "float" not in annotation)
