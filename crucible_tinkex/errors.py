"""Every error that leaves this package, as one tree ordered by what the caller can do about it.

Fix the input: `ConfigError`, `DataError`, `SweepExistsError`. Try again later or fix access:
`ServiceError` and its children. Fix the disk: `StorageError`. Each class carries the exit code of
the command line. All are picklable through Ray: every constructor argument is kept in `args`
or restored by `__reduce__`. No error ever holds the API key.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable, Mapping
from typing import Any, Literal


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known one that an unknown name may have meant; None where none is as like as `cutoff`
    (`difflib`)."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """For a message on an unknown name: the `nearest`, as a question; nothing where there is
    none."""
    meant = nearest(name, known, cutoff=cutoff)
    return f"did you mean {meant!r}? " if meant is not None else ""


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


class DamagedCheckpointError(RequestRejectedError):
    """A checkpoint's files are not those that were saved (422): take another one.

    The checkpoint is at fault, neither the disk, which may be well, nor the session.
    """

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


class SessionStateError(CrucibleError):
    """The session is in no state for this: busy, failed or completed. The message says which."""


# --- the seed's form -----------------------------------------------------------------------------

ErrorType = Literal[
    "validation",
    "network",
    "timeout",
    "rate_limit",
    "authentication",
    "billing",
    "session_lost",
    "storage",
    "internal",
]
_MAY_PASS = (408, 410, 425, 429)
"""Statuses below 500 that are not the request's fault."""


class TinkexError(CrucibleError):
    """An error with where it happened, in the seed's shape; see `wrap`.

    `type` says what to do about it, `tinkex_error` is the error itself, `status`, `category`,
    `request_id` and `retry_after_s` are what the service said (None where it said nothing).
    """

    def __init__(self, error: BaseException, **context: Any) -> None:
        message = error.message if isinstance(error, CrucibleError) else _told(error)
        super().__init__(message, **{**context, **getattr(error, "context", {})})
        self.type = error_type(error)
        self.tinkex_error = error
        self.status: int | None = getattr(error, "status", None)
        self.category: str = getattr(error, "category", "unknown")
        self.request_id: str | None = getattr(error, "request_id", None)
        self.retry_after_s: float | None = getattr(error, "retry_after_s", None)
        self.exit_code = getattr(error, "exit_code", 1)

    @property
    def is_user_error(self) -> bool:
        """Whether the request is to blame, so that sending it again is no use."""
        if self.type in ("validation", "authentication", "billing"):
            return True
        if self.status is None:
            return self.category == "user"
        return 400 <= self.status < 500 and self.status not in _MAY_PASS

    @property
    def is_retryable(self) -> bool:
        return not self.is_user_error

    def __reduce__(self) -> tuple[Any, ...]:
        """With the error itself where it can be pickled, else with its name and text."""
        state = dict(self.__dict__)
        try:
            pickle.loads(pickle.dumps(self.tinkex_error))  # noqa: S301  (our own bytes)
        except (pickle.PickleError, TypeError, AttributeError, ValueError):
            state["tinkex_error"] = CrucibleError(_told(self.tinkex_error))
        return (_rebuild, (type(self), self.message, state))


def wrap(error: BaseException, context: Mapping[str, Any] | None = None) -> TinkexError:
    """The seed's `Error.wrap`: `error` with `context` (experiment, trial, step, operation).

    What an error knows of its place is kept; wrapping again adds to it. The original lost status,
    category and the wait that the service asked for, and called a job that failed on the service a
    network error; nothing is lost here.
    """
    given = dict(context or {})
    if isinstance(error, TinkexError):
        error.with_context(**given)
        return error
    wrapped = TinkexError(error, **given)
    wrapped.__cause__ = error
    return wrapped


def error_type(error: BaseException) -> ErrorType:
    """What kind of trouble an error is, in the seed's words and a few that it lacked."""
    if isinstance(error, TinkexError):
        return error.type
    if isinstance(error, ServiceError):
        return _service_type(error)
    for classes, name in _TYPES:
        if isinstance(error, classes):
            return name
    return "internal"


def _service_type(error: ServiceError) -> ErrorType:
    for classes, name in _SERVICE_TYPES:
        if isinstance(error, classes):
            return name
    if error.status == 429:
        return "rate_limit"
    if error.status in (408, 504):
        return "timeout"
    if isinstance(error, RequestRejectedError):
        return "validation"
    if isinstance(error, OperationFailedError):
        return "validation" if error.category == "user" else "internal"
    return "network" if isinstance(error, ServiceUnavailableError) else "internal"


_SERVICE_TYPES: tuple[tuple[type[ServiceError], ErrorType], ...] = (
    (AuthenticationError, "authentication"),
    (BillingError, "billing"),
    (SessionLostError, "session_lost"),
    (ServiceStorageError, "storage"),
    (DamagedCheckpointError, "storage"),
)
_TYPES: tuple[tuple[type[BaseException], ErrorType], ...] = (
    (ConfigError, "validation"),
    (StorageError, "storage"),
    (TimeoutError, "timeout"),
    (ConnectionError, "network"),
    (OSError, "storage"),
    (ValueError, "validation"),
)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
