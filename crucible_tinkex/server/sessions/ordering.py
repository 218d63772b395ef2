"""The order of one model's requests: strictly by seq_id, whatever order they arrive in.

Guarantees: the n-th request is released when all before it have arrived; a repeat of a request
(same seq_id, same body) gives the promise of the first; another body under a used seq_id is
refused. A request that is refused uses up its seq_id, so that the next ones are not held for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from crucible_tinkex.server.operations import refused

KEPT = 20_000
"""Numbers whose repeats are still known."""


class Sequence:
    """seq_ids count from `first`. Not thread-safe: the event loop owns it."""

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._held: dict[int, Callable[[], None]] = {}
        self._seen: dict[int, tuple[bytes, str | None]] = {}

    def repeated(self, seq_id: int, digest: bytes) -> str | None:
        """The promise of an earlier, equal request; raises if an unequal one used the number."""
        if seq_id not in self._seen:
            if seq_id < self._next:
                raise refused(f"seq_id {seq_id} is not kept; the next one is {self._next}")
            return None
        known, request_id = self._seen[seq_id]
        if known != digest or request_id is None:
            raise refused(f"seq_id {seq_id} was used by another request")
        return request_id

    @property
    def awaited(self) -> int:
        """The number that the held requests wait for."""
        return self._next

    @property
    def is_awaited(self) -> bool:
        """Whether held requests wait for that number."""
        return bool(self._held)

    def is_new(self, seq_id: int) -> bool:
        return seq_id >= self._next and seq_id not in self._seen

    def following(self) -> int:
        """The number of a request that came without one."""
        return max(self._next, max(self._seen, default=0) + 1)

    def admit(
        self, seq_id: int, digest: bytes, request_id: str | None, release: Callable[[], None]
    ) -> None:
        """Call `release` now, or as soon as all earlier numbers have come."""
        self._seen[seq_id] = (digest, request_id)
        self._held[seq_id] = release
        while (ready := self._held.pop(self._next, None)) is not None:
            self._seen.pop(self._next - KEPT, None)
            self._next += 1
            ready()

    def refuse(self, seq_id: int, digest: bytes) -> None:
        """The request is bad: its number counts as done."""
        self.admit(seq_id, digest, None, _nothing)

    def abandon(self) -> list[str]:
        """Forget the held requests; returns their promises."""
        held = [self._seen[n][1] for n in sorted(self._held)]
        self._held.clear()
        return [request_id for request_id in held if request_id is not None]

    def request_ids(self) -> list[str]:
        """The promises of all requests that are known."""
        return [request_id for _, request_id in self._seen.values() if request_id is not None]


def _nothing() -> None:
    pass
