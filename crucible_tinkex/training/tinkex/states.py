"""The seed's states of a session, and what may be asked in each.

| state | training, evaluating, saving, loading | sampling from a checkpoint | closing |
|---|---|---|---|
| initializing | refused | refused | yes |
| ready | yes | yes | yes |
| training, evaluating | refused: one thing at a time | yes | yes, the work is given up |
| failed | refused until `recover` | yes, while the service knows the session | yes |
| completed | refused | refused | does nothing |

An error that leaves the weights as they were (bad rows, a refused sample) brings a session back to
`ready`; one that may have left half a step behind makes it `failed`. The original went to
`training` and stayed there for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from crucible_tinkex.errors import (
    AuthenticationError,
    ConfigError,
    CrucibleError,
    SessionLostError,
    SessionStateError,
)

State = Literal["initializing", "ready", "training", "evaluating", "completed", "failed"]


class States:
    """The state of one session; `error` is why it failed."""

    def __init__(self) -> None:
        self.state: State = "initializing"
        self.error: BaseException | None = None
        self.is_closed = False

    @contextmanager
    def working(
        self, state: Literal["training", "evaluating"], *, changes_weights: bool = False
    ) -> Iterator[None]:
        """Be in `state` inside. Raises `SessionStateError` unless the session is ready."""
        self.check()
        self.state = state
        try:
            yield
        except BaseException as error:
            if self.state == state:  # it may have been closed meanwhile
                if (changes_weights and not isinstance(error, ConfigError)) or _ends(error):
                    self.fail(error)
                else:
                    self.state = "ready"
            raise
        if self.state == state:
            self.state = "ready"

    def check(self) -> None:
        """Raises `SessionStateError` unless the session is ready."""
        if self.is_closed:
            raise SessionStateError("the session is closed; start another one")
        if self.state == "ready":
            return
        if self.state == "failed":
            raise SessionStateError(
                f"the session failed ({told(self.error)}); `recover` goes on from a checkpoint"
            )
        raise SessionStateError(f"the session is {self.state}; wait until it is ready")

    def check_open(self) -> None:
        """Raises `SessionStateError` before the beginning and after the end."""
        if self.is_closed or self.state == "initializing":
            self.check()

    def fail(self, error: BaseException) -> None:
        self.state, self.error = "failed", error

    def close(self) -> None:
        """A session that failed stays so; any other is completed."""
        self.is_closed = True
        if self.state != "failed":
            self.state = "completed"

    def recovered(self) -> None:
        self.state, self.error = "ready", None


def _ends(error: BaseException) -> bool:
    return isinstance(error, SessionLostError | AuthenticationError)


def told(error: BaseException | None) -> str:
    if isinstance(error, CrucibleError):
        return str(error)
    return "interrupted" if error is None or not str(error) else f"{type(error).__name__}: {error}"
