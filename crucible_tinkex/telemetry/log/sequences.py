"""Which sequence numbers of which writer are stored: the memory behind "sent twice, kept once".

A writer's numbers are kept as disjoint intervals, so a writer that lost nothing costs one pair of
integers however long it ran. Not a general set: nothing is ever removed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

Intervals = list[list[int]]


class SequenceSet:
    """A growing set of `(writer, seq)` in little memory."""

    def __init__(self) -> None:
        self._intervals: dict[str, Intervals] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        writer, seq = key
        spans = self._intervals.get(writer)
        if not spans:
            return False
        at = bisect_right(spans, seq, key=_first) - 1
        return at >= 0 and seq <= spans[at][1]

    def add(self, writer: str, seq: int) -> None:
        spans = self._intervals.setdefault(writer, [])
        if spans and seq == spans[-1][1] + 1:  # nearly always: the next one of this writer
            spans[-1][1] = seq
        else:
            self._insert(spans, seq, seq)

    def update(self, coverage: Mapping[str, Iterable[Sequence[int]]]) -> None:
        """Add whole intervals, as `to_json` gives them."""
        for writer, added in coverage.items():
            spans = self._intervals.setdefault(writer, [])
            for first, last in added:
                self._insert(spans, first, last)

    def to_json(self) -> dict[str, Intervals]:
        """The intervals `[first, last]` per writer, both inclusive."""
        return {writer: [list(span) for span in spans] for writer, spans in self._intervals.items()}

    @staticmethod
    def _insert(spans: Intervals, first: int, last: int) -> None:
        """Insert `[first, last]` and join it with every interval that it touches."""
        low = bisect_right(spans, first - 1, key=_last_before)
        high = low
        while high < len(spans) and spans[high][0] <= last + 1:
            first, last = min(first, spans[high][0]), max(last, spans[high][1])
            high += 1
        spans[low:high] = [[first, last]]


def _first(span: list[int]) -> int:
    return span[0]


def _last_before(span: list[int]) -> int:
    """Sort key under which a span ending at `first - 1` or later is not to the left."""
    return span[1] + 1
