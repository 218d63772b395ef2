"""What a base model's name says about it: family and size, as far as a prior needs them."""

from __future__ import annotations

import re
from dataclasses import dataclass

FAMILIES = (
    "llama",
    "qwen",
    "nemotron",
    "kimi",
    "gpt-oss",
    "deepseek",
    "gemma",
    "mistral",
    "smollm",
)
_UNSAID = {"kimi-k2": 1000.0, "deepseek-v3": 671.0}
"""Billions of weights of those whose names do not say it."""
_NANO, _NANO_BILLIONS = "nano", 0.001
TOY_BILLIONS = 0.01
"""Below this a model is a toy, which says nothing of a real one."""
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")


@dataclass(frozen=True)
class BaseFacts:
    """None: the name does not say it."""

    family: str | None
    billions: float | None
    """All weights, also those that a token does not pass through."""

    @property
    def is_toy(self) -> bool:
        """Whether it is too small to say anything of a model that people use, or to be told
        anything by one."""
        return self.billions is not None and self.billions < TOY_BILLIONS


def facts(base: str) -> BaseFacts:
    """Read off a hub name or a folder (its last two parts)."""
    name = "/".join(base.lower().split("/")[-2:])
    family = next((f for f in FAMILIES if f in name), None)
    if name.rpartition("/")[2] == _NANO:  # the toy; others have it in their names
        return BaseFacts(family, _NANO_BILLIONS)
    unsaid = next((size for part, size in _UNSAID.items() if part in name), None)
    found = _SIZE.search(name.replace("_", "-"))
    if not found:
        return BaseFacts(family, unsaid)
    number, unit = float(found[1]), found[2]
    return BaseFacts(family, number if unit == "b" else number / 1000)
