"""The seed's form of an error: its type, and that nothing which the service said is lost."""

from __future__ import annotations

import pickle

import pytest

from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    CrucibleError,
    DataError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceStorageError,
    ServiceUnavailableError,
    SessionLostError,
    StorageError,
    TinkexError,
    TrialFailedError,
    wrap,
)


@pytest.mark.parametrize(
    ("error", "type_", "retryable"),
    [
        (ServiceUnavailableError("slow down", status=429), "rate_limit", True),
        (ServiceUnavailableError("late", status=408), "timeout", True),
        (ServiceUnavailableError("late", status=504), "timeout", True),
        (ServiceUnavailableError("away", status=502), "network", True),
        (ServiceUnavailableError("away"), "network", True),
        (RequestRejectedError("no", status=422, category="user"), "validation", False),
        (OperationFailedError("bad batch", category="user"), "validation", False),
        (OperationFailedError("out of memory", category="server"), "internal", True),
        (ServiceStorageError("full", status=507, category="server"), "storage", True),
        (AuthenticationError("who", status=401, category="user"), "authentication", False),
        (BillingError("pay", status=402, category="user"), "billing", False),
        (SessionLostError("gone", status=410, category="user"), "session_lost", True),
        (ProtocolError("what"), "internal", True),
        (ConfigError("wrong"), "validation", False),
        (DataError("line 3"), "validation", False),
        (StorageError("full"), "storage", True),
        (TrialFailedError("nan"), "internal", True),
        (TimeoutError(), "timeout", True),
        (ConnectionResetError("reset"), "network", True),
        (ValueError("bad"), "validation", False),
        (KeyError("x"), "internal", True),
    ],
)
def test_types_and_what_may_be_tried_again(error: Exception, type_: str, retryable: bool) -> None:
    wrapped = wrap(error, {"experiment": "e"})
    assert (wrapped.type, wrapped.is_retryable) == (type_, retryable)
    assert wrapped.tinkex_error is error
    assert wrapped.__cause__ is error


def crossed(error: TinkexError) -> TinkexError:
    """As it comes out of another process."""
    found: TinkexError = pickle.loads(pickle.dumps(error))  # noqa: S301
    return found


def _rejected() -> ServiceError:
    return ServiceUnavailableError(
        "slow", status=429, category="server", request_id="r1", retry_after_s=3.5, operation="op"
    )


def test_nothing_that_the_service_said_is_lost_also_through_pickle() -> None:
    wrapped = wrap(_rejected(), {"experiment": "e", "trial": "t", "step": 3, "operation": "mine"})
    for error in (wrapped, crossed(wrapped)):
        assert (error.status, error.category, error.request_id) == (429, "server", "r1")
        assert (error.retry_after_s, error.exit_code, error.type) == (3.5, 4, "rate_limit")
        # What the error itself knows of its place is the nearer truth.
        assert error.context == {"experiment": "e", "trial": "t", "step": 3, "operation": "op"}
        assert isinstance(error.tinkex_error, ServiceUnavailableError)
        assert str(error) == "slow [experiment=e, trial=t, step=3, operation=op]"


def test_wrapping_again_adds_context_to_the_same_error() -> None:
    first = wrap(_rejected(), {"step": 3})
    assert wrap(first, {"step": 9, "trial": "t"}) is first
    assert (first.context["step"], first.context["trial"]) == (3, "t")


def test_an_error_that_cannot_be_pickled_crosses_as_its_text() -> None:
    class Odd(Exception):
        def __reduce__(self) -> str:
            raise TypeError("holds a socket")

    error = crossed(wrap(Odd("strange"), {"step": 1}))
    assert isinstance(error, TinkexError)
    assert isinstance(error.tinkex_error, CrucibleError)
    assert str(error) == "Odd: strange [step=1]"
