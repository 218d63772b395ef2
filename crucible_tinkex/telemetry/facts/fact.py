"""One fact about a model, a checkpoint, an artifact or a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fact:
    """`name` is in the bridge's catalogue, `time` in Unix seconds, `subject` what it is about: a
    model's `NAME:VERSION`, a checkpoint's path, a folder, a dataset's fingerprint."""

    name: str
    time: float
    subject: str
    sweep: str = ""
    trial_id: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
