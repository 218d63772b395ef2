"""Rows held out of the training file, and samples that keep the proportions of labels.

A row is held out because of its content and a seed, never because of its place: rows of the same
content (white space and case aside) stand on the same side, so that none is both learnt and
measured, and when rows are appended or moved, those that were held out stay so. With a fraction
this is exact; the number held out is then about that fraction. With a number it is those with the
smallest of the seeded keys: an appended row may take the place of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.files.source import Keys, Rows
from crucible_tinkex.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15
_UINT64 = 2**64 - 1


def split(
    rows: Rows, *, fraction: float | None = None, count: int | None = None, seed: int = 0
) -> tuple[Rows, Rows]:
    """(training rows, held-out rows), disjoint in content. Give `fraction`, between 0 and 1, or
    `count`. Raises `ConfigError` if either side has no rows."""
    if (fraction is None) == (count is None):
        raise ValueError("give fraction or count")
    mixed = _mixed(rows.keys, seed)
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


def stratified(labels: Sequence[Hashable], count: int, *, seed: int = 0) -> list[int]:
    """Positions of `count` of the labels, in order, with each label's share kept (by the largest
    remainder); all of them if there are fewer. `ValueError` where `count` is below 1."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    count = min(count, len(labels))
    strata: dict[Hashable, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        strata[label].append(i)
    quota = {label: Fraction(count * len(places), len(labels)) for label, places in strata.items()}
    taken = {label: int(share) for label, share in quota.items()}
    by_remainder = sorted(strata, key=lambda label: taken[label] - quota[label])  # stable
    for label in by_remainder[: count - sum(taken.values())]:
        taken[label] += 1
    order = _mixed(np.arange(len(labels), dtype=np.uint64), seed)
    return sorted(
        i
        for label, places in strata.items()
        for i in sorted(places, key=lambda i: int(order[i]))[: taken[label]]
    )


def _mixed(keys: Keys, seed: int) -> npt.NDArray[np.uint64]:
    """The keys as seeded uniform numbers: the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014)."""
    start = np.uint64((seed + 1) * _GOLDEN & _UINT64)
    with np.errstate(over="ignore"):
        z = keys + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
