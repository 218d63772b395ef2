"""What a step is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StepContext:
    """One cell (a condition, a repeat) of an experiment."""

    session: Any
    """A `TinkexSession`, or the blocking one: what steps work through."""
    dataset: Any
    trace_id: str
    """Of this run of the experiment: the same on every row that it leaves."""
    condition: str
    repeat: int
    seed: int
    params: Mapping[str, Any]
    """The condition's options."""
    results: dict[str, Any] = field(default_factory=dict)
    """Of the steps before, by name."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What this step told before it was interrupted; empty at first."""
    save: Callable[[Mapping[str, Any]], None] = lambda progress: None
    """Keep `progress` for a run that takes the step up again (JSON values)."""
    attempt: int = 1
    is_stopping: Callable[[], bool] = lambda: False
    """Whether the experiment is to end now: a `graceful` step saves and returns."""
