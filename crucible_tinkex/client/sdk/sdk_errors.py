"""The border between the official SDK's errors and ours. Messages lose anything like a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tinker

from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.key import scrub
from crucible_tinkex.client.http.retry import EXCERPT_CHARS, meaning
from crucible_tinkex.errors import (
    ConfigError,
    CrucibleError,
    OperationFailedError,
    ProtocolError,
    ServiceError,
    ServiceUnavailableError,
    SessionLostError,
)

_OF_A_MODEL = ("forward_backward", "optim_step")
_LOST = ("status 404", "status 410", "closed")
"""The SDK has no class of its own for a forgotten promise, nor for a closed client."""


@contextmanager
def translated(operation: str, **context: Any) -> Iterator[None]:
    """Within it, whatever the SDK raises leaves as one of ours."""
    try:
        yield
    except (tinker.TinkerError, OSError, ValueError, AssertionError, RuntimeError) as error:
        kind, details = _kind(error, operation)
        text = f"{operation}: {scrub(str(error)[:EXCERPT_CHARS], None) or type(error).__name__}"
        raise kind(text, operation=operation, **details, **context) from None
    except ImportError as error:
        raise ConfigError(f"{operation} over the SDK needs more: {error}") from None


def _kind(error: Exception, operation: str) -> tuple[type[CrucibleError], dict[str, Any]]:
    match error:
        case tinker.APIStatusError(status_code=status):
            lost_on = {404, 410} if operation in _OF_A_MODEL else {410}
            return meaning(Reply(status, (), b"."), lost_on)[1], {"status": status}
        case tinker.APIResponseValidationError():
            return ProtocolError, {}
        case tinker.APIConnectionError() | OSError():
            return ServiceUnavailableError, {}
        case tinker.RequestFailedError(category=category, request_id=request_id):
            word = str(getattr(category, "value", category))
            return OperationFailedError, {"category": word, "request_id": request_id}
        case tinker.TinkerError():
            return ServiceError, {}
    return SessionLostError if any(t in str(error) for t in _LOST) else ProtocolError, {}
