"""The order in which training sees rows: a pure function of (seed, step), with no state to save.

Rows form an endless stream of epochs; each epoch is its own permutation of all rows, keyed by
(seed, epoch). Step k, counted from 1, takes positions (k-1)*B .. k*B-1 of the stream, so that every
batch is full and a batch may cross from one epoch into the next. A resumed or forked session
therefore continues with exactly the rows it would have seen.

The permutation sorts raw Philox words, whose values NumPy guarantees; it does not use
`Generator.permutation`, whose results may change between NumPy releases.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_UINT64 = 2**64 - 1


def batch_indices(rows: int, *, seed: int, step: int, batch_size: int) -> list[int]:
    """The rows of step `step` (from 1); `ValueError` where a count is below 1."""
    _check(rows=rows, step=step, batch_size=batch_size)
    position, end = (step - 1) * batch_size, step * batch_size
    indices: list[int] = []
    while position < end:
        epoch, start = divmod(position, rows)
        taken = min(rows - start, end - position)
        indices += _permutation(rows, seed & _UINT64, epoch)[start : start + taken].tolist()
        position += taken
    return indices


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
