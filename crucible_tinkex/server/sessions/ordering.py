"""The order of one model's requests: strictly by seq_id, whatever order they arrive in.

Guarantees: the n-th request is released when all before it have arrived; a repeat of a request
(same seq_id, same body) gives the promise of the first; another body under a used seq_id is
refused. A request that is refused uses up its seq_id, so that the next ones are not held for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.server.operations import refused

KEPT = 20_000
"""Numbers whose repeats are still known."""


class Sequence:
    """seq_ids count from 1; `awaited` is the next one. The event loop owns it."""

    def __init__(self) -> None:
        self.awaited = 1
        self._held: dict[int, Callable[[], None] | None] = {}
        self._seen: dict[int, tuple[bytes, str | CrucibleError]] = {}

    def repeated(self, seq_id: int, digest: bytes) -> str | None:
        """The promise of an earlier, equal request; raises if an unequal one used the number, and
        with its reason if one was refused: a client that tries JSON after protobuf, or again, would
        else be told of the number and never of the fault."""
        if seq_id not in self._seen:
            if seq_id < self.awaited:
                raise refused(f"seq_id {seq_id} is not kept; the next one is {self.awaited}")
            return None
        known, outcome = self._seen[seq_id]
        if isinstance(outcome, CrucibleError):
            raise copy(outcome)
        if known != digest:
            raise refused(f"seq_id {seq_id} was used by another request")
        return outcome

    def unblocks(self, seq_id: int) -> bool:
        """Whether others are held until this number comes."""
        return seq_id == self.awaited and bool(self._held)

    def is_new(self, seq_id: int) -> bool:
        return seq_id >= self.awaited and seq_id not in self._seen

    def following(self) -> int:
        """The number of a request that came without one."""
        return max(self.awaited, max(self._seen, default=0) + 1)

    def admit(
        self,
        seq_id: int,
        digest: bytes,
        outcome: str | CrucibleError,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Call `release` now, or as soon as all earlier numbers have come. `outcome`: the id of the
        promise, or why it was refused."""
        self._seen[seq_id] = (digest, outcome)
        self._held[seq_id] = release
        while self.awaited in self._held:
            ready = self._held.pop(self.awaited)
            self._seen.pop(self.awaited - KEPT, None)
            self.awaited += 1
            if ready is not None:
                ready()

    def abandon(self) -> list[str]:
        """Forget the held requests; returns their promises."""
        held = [self._seen[n][1] for n in sorted(self._held)]
        self._held.clear()
        return [outcome for outcome in held if isinstance(outcome, str)]
