"""The order in which training sees rows: a pure function of (seed, step), with no state to save.

Rows form an endless stream of epochs; each epoch is its own permutation of all rows, keyed by
(seed, epoch). Step k, counted from 1, takes positions (k-1)*B .. k*B-1 of the stream, so that every
batch is full and a batch may cross from one epoch into the next. A resumed or forked session
therefore continues with exactly the rows it would have seen.

Files that are weighted are drawn each from its own endless stream (`Segment`): an epoch takes the
next rows of it, as many as its weight says, so that after any number of epochs every row of a file
was shown as often as every other, within one.

The permutation sorts raw Philox words, whose values NumPy guarantees; it does not use
`Generator.permutation`, whose results may change between NumPy releases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_UINT64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # odd, so that no two segments share a key


class Segment(NamedTuple):
    """Rows that stand together, and how many of them an epoch shows."""

    rows: int
    drawn: int

    @classmethod
    def weighted(cls, rows: int, weight: float) -> Segment:
        """An epoch shows each row `weight` times, rounded to whole rows and at least one."""
        return cls(rows, max(1, round(weight * rows)) if rows else 0)


def batch_indices(rows: int, *, seed: int, step: int, batch_size: int) -> list[int]:
    """The rows of step `step` (from 1); `ValueError` where a count is below 1."""
    stream = _stream(rows, seed=seed, step=step, batch_size=batch_size)
    return [row for _, part in stream for row in part]


def mixed_indices(
    segments: Sequence[Segment], *, seed: int, step: int, batch_size: int
) -> list[int]:
    """As `batch_indices`, of the rows of all `segments`, one after the other. Without weights it
    is the same."""
    drawn = sum(segment.drawn for segment in segments)
    if all(segment.rows == segment.drawn for segment in segments):
        return batch_indices(drawn, seed=seed, step=step, batch_size=batch_size)
    return [
        _row_of(segments, seed=seed, epoch=epoch, position=position)
        for epoch, part in _stream(drawn, seed=seed, step=step, batch_size=batch_size)
        for position in part
    ]


def _stream(rows: int, *, seed: int, step: int, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """The rows of a step by epoch."""
    _check(rows=rows, step=step, batch_size=batch_size)
    position, end = (step - 1) * batch_size, step * batch_size
    while position < end:
        epoch, start = divmod(position, rows)
        taken = min(rows - start, end - position)
        yield epoch, _permutation(rows, seed & _UINT64, epoch)[start : start + taken].tolist()
        position += taken


def _row_of(segments: Sequence[Segment], *, seed: int, epoch: int, position: int) -> int:
    """The row at a position of an epoch's draws."""
    before = 0
    for number, segment in enumerate(segments, 1):
        if position < segment.drawn:
            cycle, place = divmod(epoch * segment.drawn + position, segment.rows)
            if segment.drawn == segment.rows:
                return before + place
            key = seed + number * _GOLDEN & _UINT64
            return before + int(_permutation(segment.rows, key, cycle)[place])
        position -= segment.drawn
        before += segment.rows
    raise IndexError(f"position {position} after the last segment")


def total_steps(rows: int, *, epochs: float, batch_size: int) -> int:
    """Steps that show every row at least `epochs` times; `epochs` counts as the decimal written."""
    _check(rows=rows, batch_size=batch_size)
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs must be a positive number, not {epochs!r}")
    return math.ceil(rows * Fraction(str(epochs)) / batch_size)


def epoch_of(step: int, *, rows: int, batch_size: int) -> int:
    """The epoch, counted from 0, of the first row of step `step` (from 1)."""
    _check(rows=rows, step=step, batch_size=batch_size)
    return (step - 1) * batch_size // rows


# A session asks for every step of an epoch in turn; one sort per epoch instead of one per step.
@lru_cache(maxsize=16)
def _permutation(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    philox = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    order = np.argsort(philox.random_raw(rows), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
