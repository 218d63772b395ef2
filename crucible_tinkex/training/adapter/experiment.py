"""The seed's experiment and its configuration, whose names are kept.

The original dropped what it did not know, so that the seed's own `base_model` and `lora_config`
vanished; here an unknown key is refused with the nearest one, and what the Tinker API cannot apply
is accepted and named (`not_applied`). The API key itself is never kept: only that it stands in the
environment (TINKER_API_KEY, or the seed's TINKEX_API_KEY) or in a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from crucible_tinkex.config import LoraSection, OptimizerSection
from crucible_tinkex.config.problems import explain
from crucible_tinkex.config.section import Section
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import base_name

DEFAULT_BASE = "meta-llama/Llama-3.1-8B-Instruct"
DEFAULT_RANK = 16
KEY_VARIABLES = ("TINKER_API_KEY", "TINKEX_API_KEY")
_ALIASES = {"default_base_model": "base_model"}
_LORA_NOT_APPLIED = ("alpha", "dropout", "target_modules")
_NOT_APPLIED = ("timeout", "max_retries", "pool_size")
"""The client waits and repeats by time, per key, not by count and per session."""

Status = Literal["pending", "running", "completed", "failed"]


class LoraSettings(LoraSection):
    """The adapter that is trained: a sweep's `[lora]` with the seed's defaults and limits."""

    rank: int = Field(default=DEFAULT_RANK, ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, le=1)


class AdapterConfig(Section):
    """`config` of an experiment."""

    base_model: str = Field(default=DEFAULT_BASE, min_length=1)
    lora_config: LoraSettings = LoraSettings()
    base_url: str | None = None
    """By default TINKER_BASE_URL, then TINKEX_BASE_URL, else hosted Tinker."""
    api_key_file: str | None = None
    allow_http: bool | tuple[str, ...] = False
    transport: Literal["http", "sdk"] = "http"
    tokenizer: str | None = None
    """A folder or a name on the hub; by default the service's."""
    seed: int = 0
    """Of the order of rows, and of the adapter's initial weights unless `lora_config` has one."""
    max_length: int = Field(default=512, ge=2)
    """Longest row in tokens."""
    optimizer: OptimizerSection = OptimizerSection()
    quality_targets: dict[str, Any] | None = None
    user_metadata: dict[str, Any] = Field(default_factory=dict)
    timeout: float | None = Field(default=None, gt=0)
    max_retries: int | None = Field(default=None, ge=0)
    pool_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _seeds_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = {_ALIASES.get(key, key): item for key, item in value.items()}
        if (rank := given.pop("default_lora_rank", None)) is not None:
            lora = given.get("lora_config")
            given["lora_config"] = {"rank": rank, **(lora if isinstance(lora, Mapping) else {})}
        return given

    @field_validator("base_model")
    @classmethod
    def _canonical(cls, value: str) -> str:
        return base_name(value)

    @classmethod
    def build(cls, given: Mapping[str, Any] | AdapterConfig | None) -> AdapterConfig:
        """Raises `ConfigError` that lists every problem. `api_key` may be that of the environment,
        and is not kept; any other is refused, and never shown."""
        if isinstance(given, AdapterConfig):
            return given
        fields = dict(given or {})
        _check_key(fields.pop("api_key", None))
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(explain(error, source="config", model=cls)) from None

    def merged(self, override: Mapping[str, Any]) -> AdapterConfig:
        """With `override` in place of what it names, also where that is a default (the original
        took an override that equals the default for none)."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.build({**given, **override})

    @property
    def not_applied(self) -> list[str]:
        """Dotted keys that were given and that neither the Tinker API nor our client can apply."""
        lora, own = self.lora_config.model_fields_set, self.model_fields_set
        return [f"lora_config.{k}" for k in _LORA_NOT_APPLIED if k in lora] + [
            key for key in _NOT_APPLIED if key in own
        ]


@dataclass
class LoraExperiment:
    """What is to be learnt, and what came of it: sessions fill in `status` and the lists."""

    id: str
    name: str
    config: AdapterConfig
    description: str = ""
    tags: tuple[str, ...] = ()
    status: Status = "pending"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """A row per step."""
    checkpoints: list[Any] = field(default_factory=list)

    @property
    def not_applied(self) -> list[str]:
        return self.config.not_applied


def _check_key(key: Any) -> None:
    if key is None or any(key == os.environ.get(name) for name in KEY_VARIABLES):
        return
    raise ConfigError(
        "config: api_key: a key is not kept in a configuration; put it into the environment "
        "variable TINKER_API_KEY, or into a file and name that: api_key_file"
    )


def environment_url() -> str | None:
    """The seed's TINKEX_BASE_URL, where TINKER_BASE_URL is not set."""
    if os.environ.get("TINKER_BASE_URL"):
        return None
    return os.environ.get("TINKEX_BASE_URL") or None


def adopt_key() -> bool:
    """Let the client, which reads TINKER_API_KEY, find the key under the seed's name; whether it
    was there. Nothing is overwritten."""
    key = os.environ.get("TINKEX_API_KEY")
    if not key or os.environ.get("TINKER_API_KEY"):
        return False
    os.environ["TINKER_API_KEY"] = key
    return True
