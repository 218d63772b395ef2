"""What is known of a model: what was registered, and what was said of it since."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import TinkerPath, check_segment, plain

STAGES = ("development", "staging", "production", "archived")
_REFERENCE = re.compile(r"^(?P<name>[^:@]+)(?::(?P<version>[0-9]+)|@(?P<alias>.+))?$")
_TAG = re.compile(r"^[^\s,]{1,64}$")


class ModelEntry(BaseModel):
    """What is given at registration. Metrics may be NaN: such a model is kept and never wins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_path: str = Field(min_length=1)
    """`tinker://RUN/KIND/NAME`, a folder, or a URI of an object store."""
    base_model: str | None = None
    metrics: dict[str, float] = {}
    tags: tuple[str, ...] = ()
    description: str = ""
    sweep: str | None = None
    """Name of the sweep that trained it."""
    sweep_id: str | None = None
    experiment_id: str | None = None
    """Of the adapter's experiment that trained it."""
    checkpoint_name: str | None = None
    lora_rank: int | None = None
    trial_id: str | None = None
    step: int | None = None
    seed: int | None = None
    config: dict[str, Any] = {}
    """What varied, by dotted key."""
    data_fingerprint: str | None = None
    service: str | None = None
    """Where the checkpoint can be sampled from."""
    parents: tuple[str, ...] = ()
    """Models that it came from (fine-tuned, merged, distilled): `name:version`."""
    metadata: dict[str, Any] = {}
    """Anything else, as JSON values."""

    @field_validator("checkpoint_path")
    @classmethod
    def _path(cls, path: str) -> str:
        if path.startswith("tinker://"):
            try:
                TinkerPath.read(path)
            except ConfigError as e:
                raise ValueError(e.message) from None
        return path

    @field_validator("tags")
    @classmethod
    def _tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return checked_tags(tags)

    @classmethod
    def parse(cls, name: str, found: Mapping[str, Any]) -> ModelEntry:
        """Raises `ConfigError` that names every wrong key and the legal ones."""
        try:
            return cls.model_validate(dict(found))
        except ValidationError as e:
            legal = ", ".join(cls.model_fields)
            raise ConfigError(
                f"model {name!r} cannot be registered: {wrong_keys(e)}; keys: {legal}"
            ) from e


@dataclass(frozen=True)
class ModelVersion:
    """One registered checkpoint, as it stands now. `version` counts from 1 and is never reused."""

    name: str
    version: int
    entry: ModelEntry
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    stage: str
    aliases: tuple[str, ...]
    created: float
    """Unix seconds."""

    @property
    def id(self) -> str:
        return model_id(self.name, self.version)

    @property
    def checkpoint_path(self) -> str:
        return self.entry.checkpoint_path

    @property
    def base_model(self) -> str | None:
        return self.entry.base_model

    def summary(self) -> dict[str, Any]:
        """JSON values; keys are only ever added. What is not a number becomes null."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "stage": self.stage,
            "aliases": list(self.aliases),
            **self.entry.model_dump(mode="json"),
            "metrics": plain(self.metrics),
            "tags": list(self.tags),
            "created": self.created,
        }


@dataclass(frozen=True)
class Reference:
    """`name`, `name:version` or `name@alias`."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        match = _REFERENCE.match(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a model: write NAME, NAME:VERSION or NAME@ALIAS")
        name, version, alias = match.groups()
        return cls(name, int(version) if version else None, alias)


def wrong_keys(error: ValidationError) -> str:
    """Every wrong key of an entry, and what is wrong with it."""
    return "; ".join(
        f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}"
        for p in error.errors()
    )


def model_id(name: str, version: int) -> str:
    """The reference that always means the same weights."""
    return f"{name}:{version}"


def checked_name(name: str) -> str:
    return check_segment(name, what="model name")


def checked_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Without repetition. Raises ValueError for one with spaces or commas."""
    for tag in tags:
        if not _TAG.match(tag):
            raise ValueError(f"tag {tag!r} must be 1 to 64 characters without spaces or commas")
    return tuple(dict.fromkeys(tags))


def checked_stage(stage: str) -> str:
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")
    return stage
