"""The border between the official SDK's errors and ours. Messages lose anything like a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tinker

from crucible_tinkex.client.http.key import scrub
from crucible_tinkex.client.http.retry import EXCERPT_CHARS
from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
    SessionLostError,
)

_GONE = ("status 404", "status 410")
_CLOSED = ("closed",)


@contextmanager
def translated(operation: str, **context: Any) -> Iterator[None]:
    """Within it, whatever the SDK raises leaves as one of ours."""
    try:
        yield
    except tinker.APIStatusError as error:
        raise _by_status(error, operation, context) from None
    except tinker.APIResponseValidationError as error:
        raise ProtocolError(_text(operation, error), operation=operation, **context) from None
    except (tinker.APIConnectionError, TimeoutError) as error:
        text = _text(operation, error)
        raise ServiceUnavailableError(text, operation=operation, **context) from None
    except tinker.RequestFailedError as error:
        raise OperationFailedError(
            _text(operation, error),
            category=str(getattr(error.category, "value", error.category)),
            request_id=error.request_id,
            operation=operation,
            **context,
        ) from None
    except ImportError as error:
        raise ConfigError(f"{operation} over the SDK needs more: {error}") from None
    except tinker.TinkerError as error:
        raise ServiceError(_text(operation, error), operation=operation, **context) from None
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _by_text(error, operation, context) from None


def _by_status(
    error: tinker.APIStatusError, operation: str, context: dict[str, Any]
) -> ServiceError:
    status = error.status_code
    kind: type[ServiceError] = RequestRejectedError
    if status in (401, 403):
        kind = AuthenticationError
    elif status == 402:
        kind = BillingError
    elif status == 410 or (status == 404 and operation in ("forward_backward", "optim_step")):
        kind = SessionLostError
    elif status in (408, 409, 429) or status >= 500:
        kind = ServiceUnavailableError
    return kind(_text(operation, error), status=status, operation=operation, **context)


def _by_text(error: Exception, operation: str, context: dict[str, Any]) -> ServiceError:
    """The SDK has no class of its own for a forgotten promise, nor for a closed client."""
    text = str(error)
    is_lost = any(t in text for t in (*_GONE, *_CLOSED))
    kind = SessionLostError if is_lost else ProtocolError
    return kind(_text(operation, error), operation=operation, **context)


def _text(operation: str, error: Exception) -> str:
    return f"{operation}: {scrub(str(error)[:EXCERPT_CHARS], None) or type(error).__name__}"
