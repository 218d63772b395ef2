"""`[model]` and `[lora]`: the frozen base and the adapter that is trained on it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

from crucible_tinkex.config.section import Section, anchor_of, anchored
from crucible_tinkex.names import base_name

NOT_APPLIED = ("lora.alpha", "lora.dropout", "lora.target_modules")
"""Seed settings that the Tinker API cannot take: accepted, recorded, refused as sweep axes."""


class ModelSection(Section):
    """What is trained."""

    base: str = Field(min_length=1)
    """Name of the base model, known to the service. Embedded server: `nano` (tiny, for tests),
    `smollm2-135m-instruct` (SmolLM2-135M-Instruct, dequantised from Q4_1), a Hugging Face model
    folder, relative to the experiment file, or `org/name` (also `org/name@revision`) on the hub, of
    the families Llama, Qwen2, Qwen3, Mistral and Gemma."""
    tokenizer: str | None = None
    """A folder, relative to the experiment file, or a name on the hub; by default the service's,
    and that of the base where the service names none."""

    @field_validator("base")
    @classmethod
    def _canonical(cls, value: str) -> str:
        return base_name(value)

    @field_validator("tokenizer")
    @classmethod
    def _folder_or_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and (folder_beside(value, anchor_of(info)) or value)


def folder_beside(value: str, start: Path, *, holding: str = "") -> str | None:
    """The absolute path, if there is such a folder (with that file); None for a mere name."""
    path = anchored(value, start)
    return path if os.path.exists(os.path.join(path, holding)) else None


class LoraSection(Section):
    """The adapter."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the two factors."""
    train_attn: bool = True
    """Adapt the attention projections."""
    train_mlp: bool = True
    """Adapt the feed-forward projections."""
    train_unembed: bool = False
    """Adapt the output layer."""
    seed: int | None = None
    """Seed of the adapter's initial weights; by default the trial's seed."""
    alpha: float | None = None
    """Recorded only: the Tinker API fixes it (32)."""
    dropout: float | None = None
    """Recorded only: the Tinker API has none."""
    target_modules: tuple[str, ...] | None = None
    """Recorded only: the Tinker API has the three switches above."""

    @model_validator(mode="after")
    def _trains_something(self) -> LoraSection:
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError("at least one of train_attn, train_mlp, train_unembed must be true")
        return self
