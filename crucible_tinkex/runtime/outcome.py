"""How a call of a session ended, as a value that crosses processes, and whose fault an error is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    CrucibleError,
    OperationFailedError,
    RequestRejectedError,
    StorageError,
    TrialFailedError,
)
from crucible_tinkex.session import Progress


class Verdict(StrEnum):
    """What the controller should do with a trial after a call."""

    ADVANCED = "advanced"
    DRAINED = "drained"
    FAILED = "failed"
    """The trial is at fault; others go on."""
    RETRY = "retry"
    """The session was lost; a new attempt continues from the last checkpoint."""
    STOP = "stop"
    """Nothing can go on (key, bill, disk); the sweep stops and can be resumed."""


@dataclass(frozen=True)
class Outcome:
    """How an advance ended. Errors are values: they cross processes."""

    verdict: Verdict
    progress: Progress | None = None
    error: CrucibleError | None = None


def judge(error: CrucibleError) -> Verdict:
    """Whose fault an error is, and so what happens next."""
    if isinstance(error, AuthenticationError | BillingError | StorageError):
        return Verdict.STOP
    if isinstance(error, OperationFailedError):
        return Verdict.RETRY if error.category == "server" else Verdict.FAILED
    if isinstance(error, TrialFailedError | RequestRejectedError | ConfigError):
        return Verdict.FAILED
    return Verdict.RETRY
