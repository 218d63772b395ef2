"""What a session needs of the registry, wherever it lives: the port, its values, and the states.

A stand-in until `crucible_tinkex.registry` offers the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

PENDING, RUNNING, PAUSED = "pending", "running", "paused"
DONE, STOPPED, FAILED, LOST = "done", "stopped", "failed", "lost"
TERMINAL = (DONE, STOPPED, FAILED, LOST)


@dataclass(frozen=True)
class Spent:
    """What one attempt has used so far; cumulative, so that telling it again changes nothing."""

    train_tokens: int = 0
    """Input tokens of `forward_backward`."""
    prefill_tokens: int = 0
    """Input tokens of `forward`, and prompts of samples."""
    sample_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the attempt."""


@dataclass(frozen=True)
class CheckpointRecord:
    """A resumable `state` checkpoint that the service has acknowledged."""

    trial_id: str
    attempt: int
    step: int
    path: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class AttemptGrant:
    """The right to write for a trial, until a newer attempt is granted."""

    attempt: int
    checkpoints: tuple[CheckpointRecord, ...]
    """Committed ones, newest first."""


class RegistryPort(Protocol):
    """All calls may be repeated. Raises `StaleAttemptError` for an attempt that was replaced."""

    async def start_attempt(self, trial_id: str) -> AttemptGrant: ...

    async def intend_checkpoint(
        self, trial_id: str, attempt: int, step: int, name: str
    ) -> None: ...

    async def commit_checkpoint(self, checkpoint: CheckpointRecord, spent: Spent) -> None: ...

    async def lose_checkpoint(
        self, trial_id: str, attempt: int, path: str, reason: str
    ) -> None: ...

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float], spent: Spent
    ) -> None: ...

    async def finish(
        self, trial_id: str, attempt: int, state: str, error: str | None, spent: Spent
    ) -> None: ...
