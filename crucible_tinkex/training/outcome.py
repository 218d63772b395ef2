"""How an `advance` ended, as a value that crosses processes, and whose fault an error is.

| error | verdict |
|---|---|
| the key, the bill, our own storage, a newer run of the sweep | `stop`: nothing can go on |
| what the service says the request is to blame for; a bad configuration; a loss that is not finite | `failed`: the trial's own |
| everything else: out of reach, lost, full, a failed process, a service's own failure | `retry`: the infrastructure's |

An error of a checkpoint that cannot be loaded never comes here unless nothing else could be opened
either: the session falls back (`session`).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    CrucibleError,
    OperationFailedError,
    RequestRejectedError,
    ServiceError,
    StaleEpochError,
    StorageError,
    TrialFailedError,
)
from crucible_tinkex.training.attempt.reporter import Reporter

After = Callable[[TrainingClient, Reporter, Mapping[str, float]], Awaitable[None]]
"""What is done with the weights and the result of a trial that was trained to its last step."""


@dataclass(frozen=True)
class Progress:
    """Where a session stands after `advance`."""

    trial_id: str
    attempt: int
    step: int
    metrics: Mapping[str, float]
    """Of the newest evaluation."""
    drained: bool
    """Stopped before its target because it was asked to drain."""


class Verdict(StrEnum):
    """What the controller should do with a trial after a call."""

    ADVANCED = "advanced"
    DRAINED = "drained"
    FAILED = "failed"
    """The trial is at fault; others go on."""
    RETRY = "retry"
    """The infrastructure is; a new attempt continues from the last checkpoint."""
    STOP = "stop"
    """Nothing can go on (key, bill, storage); the sweep stops and can be resumed."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `SessionHost.advance` ended. Errors are values: they cross processes."""

    verdict: Verdict
    progress: Progress | None = None
    """None where the trial did not begin."""
    error: CrucibleError | None = None


def judge(error: CrucibleError) -> Verdict:
    """Whose fault an error is, and so what happens next."""
    if isinstance(error, AuthenticationError | BillingError | StorageError | StaleEpochError):
        return Verdict.STOP
    if isinstance(error, TrialFailedError | ConfigError):
        return Verdict.FAILED
    if isinstance(error, RequestRejectedError):
        return Verdict.RETRY if _is_services_fault(error) else Verdict.FAILED
    if isinstance(error, OperationFailedError):
        return Verdict.FAILED if error.category == "user" else Verdict.RETRY
    return Verdict.RETRY


def _is_services_fault(error: ServiceError) -> bool:
    return error.category == "server" or (error.status is not None and error.status >= 500)


def speaks_of_checkpoint(error: CrucibleError) -> bool:
    """Whether an error of loading a checkpoint may be the checkpoint's: it is gone or damaged.

    A failure of the operation counts whatever its category, for a service that reads a damaged file
    blames itself. So does a 404 or 410, which may mean that the session is lost: then nothing else
    can be opened either.
    """
    if isinstance(error, RequestRejectedError):
        return not _is_services_fault(error)
    if isinstance(error, OperationFailedError | ConfigError):
        return True
    return isinstance(error, ServiceError) and error.status in (404, 410)
