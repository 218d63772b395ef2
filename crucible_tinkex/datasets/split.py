"""Rows held out of the training file.

A row is held out because of its content and a seed, never because of its place: rows of the same
content (white space and case aside) stand on the same side, so that none is both learnt and
measured, and when rows are appended or moved, those that were held out stay so. With a fraction
this is exact; the number held out is then about that fraction. With a number it is those with the
smallest of the seeded keys: an appended row may take the place of another.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.files.source import Rows
from crucible_tinkex.datasets.sampling import uniform
from crucible_tinkex.errors import ConfigError


def split(
    rows: Rows, *, fraction: float | None = None, count: int | None = None, seed: int = 0
) -> tuple[Rows, Rows]:
    """(training rows, held-out rows), disjoint in content. Give `fraction`, between 0 and 1, or
    `count`. Raises `ConfigError` if either side has no rows."""
    if (fraction is None) == (count is None):
        raise ValueError("give fraction or count")
    mixed = uniform(rows.keys, seed)
    if fraction is not None:
        held_out = mixed < np.uint64(int(Fraction(fraction) * 2**64))
        asked = f"data.eval_fraction = {fraction}"
    else:
        distinct = np.unique(mixed)
        limit = distinct[min(count or 1, len(distinct)) - 1]
        held_out = mixed <= limit
        asked = f"data.eval_rows = {count}"
    if not held_out.any() or held_out.all():
        side = "no evaluation rows" if not held_out.any() else "no training rows"
        raise ConfigError(
            f"{asked} leaves {side} of {len(rows)}{_copies(mixed)}; choose another, or name a file "
            "in data.eval"
        )
    return rows.where(~held_out), rows.where(held_out)


def _copies(keys: npt.NDArray[np.uint64]) -> str:
    different = len(np.unique(keys))
    one = different == 1
    told = "all are copies of one" if one else f"{different} different ones: copies stay together"
    return f" ({told})" if different < len(keys) else ""
