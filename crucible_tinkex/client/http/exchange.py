"""What one HTTP exchange needs and gives: words that load no HTTP library (`connections` does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Headers = Sequence[tuple[bytes, bytes]]


class Limits(NamedTuple):
    """`polls` is how many of the connections waiting requests may hold; the rest can submit."""

    connections: int = 512
    polls: int = 448
    idle_s: float = 30.0
    connect_s: float = 10.0
    answer_bytes: int = 256 * 1024 * 1024


class Reply(NamedTuple):
    """A complete answer; header names are compared in lower case by `header`."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value.decode("latin-1").strip()
        return None


class ExchangeError(Exception):
    """No usable answer. Whether the request took effect is unknown, unless it was a connect."""

    def __init__(self, text: str, *, is_malformed: bool = False, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_malformed = is_malformed
        self.is_final = is_final
        """Trying again is no use: the host cannot prove who it is, or the proxy refuses."""
