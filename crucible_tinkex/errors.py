"""Every error that leaves this package, as one tree ordered by what the caller can do about it.

Fix the input: `ConfigError`, `DataError`, `SweepExistsError`. Try again later or fix access:
`ServiceError` and its children. Fix the disk: `StorageError`. Each class carries the exit code of
the command line. All are picklable through Ray: every constructor argument is kept in `args`
or restored by `__reduce__`. No error ever holds the API key.
"""

from __future__ import annotations

from typing import Any


class CrucibleError(Exception):
    """Something that this package can name went wrong."""

    exit_code = 1

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def __str__(self) -> str:
        where = ", ".join(f"{k}={v}" for k, v in self.context.items() if v is not None)
        return f"{self.message} [{where}]" if where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__))

    def with_context(self, **context: Any) -> CrucibleError:
        """Add where it happened (trial, step, operation), keeping what is already known."""
        self.context = {**context, **self.context}
        return self


def _rebuild(cls: type[CrucibleError], message: str, state: dict[str, Any]) -> CrucibleError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigError(CrucibleError):
    """The experiment or the command line asks for something impossible; fix it and run again."""

    exit_code = 2


class DataError(ConfigError):
    """A dataset file is missing or malformed; the message names file and line."""


class SweepExistsError(ConfigError):
    """A sweep of this name exists with another experiment; choose another name."""


class SweepBusyError(ConfigError):
    """Another live process is running this sweep."""


class StaleEpochError(SweepBusyError):
    """A newer run owns this sweep; this one must stop and write nothing more."""


class ServiceError(CrucibleError):
    """The training service failed or refused; `status` and `category` say how."""

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        category: str = "unknown",
        request_id: str | None = None,
        retry_after_s: float | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, **context)
        self.status = status
        self.category = category
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class ServiceUnavailableError(ServiceError):
    """The service could not be reached, or did not answer before the deadline."""


class AuthenticationError(ServiceError):
    """The service refused the API key (401 or 403)."""


class BillingError(ServiceError):
    """The service refuses work until the account is paid (402)."""


class RequestRejectedError(ServiceError):
    """The service understood the request and refuses it (other 4xx); sending it again is no use."""


class OperationFailedError(ServiceError):
    """The service accepted the operation and then failed it."""


class ServiceStorageError(OperationFailedError):
    """The service could not keep what it was asked to (507): its disk is full or broken."""

    exit_code = 5


class SessionLostError(ServiceError):
    """The service no longer knows this session, model or promise; resume from a checkpoint."""


class ProtocolError(ServiceError):
    """The service answered with something that is not the Tinker protocol."""


class StorageError(CrucibleError):
    """The storage is full, unreadable or corrupt."""

    exit_code = 5


class CorruptLogError(StorageError):
    """A log segment has a damaged record in its middle; the message names file and offset."""


class TrialFailedError(CrucibleError):
    """One trial cannot go on (for example its loss became NaN); others are not affected."""


class InterruptedSweepError(CrucibleError):
    """A person ended the run before it trained; the same command goes on."""

    exit_code = 130


class StaleAttemptError(CrucibleError):
    """A newer attempt of this trial exists; this one must stop and write nothing more."""


class HostLostError(CrucibleError):
    """The process that held a session died or stopped answering: the infrastructure's fault."""


class RuntimeFailedError(CrucibleError):
    """What sweeps run on (Ray, worker processes) failed; nothing that was saved is lost."""

    exit_code = 4


class WorkerStartError(RuntimeFailedError):
    """No worker process could be started; the message carries the last reason."""


class RayStartError(RuntimeFailedError):
    """Ray did not start, or the cluster at the address did not answer."""


class ClusterLostError(RuntimeFailedError):
    """The Ray cluster went away during a run; running it again continues from what was saved."""
