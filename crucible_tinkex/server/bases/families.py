"""Which model folders the server can train, told from their `config.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible_tinkex.errors import ConfigError

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")


def check_family(config: Mapping[str, Any], name: str) -> None:
    """Raises `ConfigError` for a model that would not load, or would be trained wrongly."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"{name} holds a {family!r} model; supported are {', '.join(FAMILIES)}: choose one of "
            "these as base"
        )
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if config.get(key):
            raise ConfigError(f"{name} uses {key}, which this server does not support")
    if config.get("quantization_config"):
        raise ConfigError(f"{name} is quantised; choose the model that it was made from as base")
