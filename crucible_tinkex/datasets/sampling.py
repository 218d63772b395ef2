"""Seeded choices that depend on nothing else: uniform numbers of keys, and samples that keep the
proportions of labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_UINT64 = 2**64 - 1


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
    order = uniform(np.arange(len(labels), dtype=np.uint64), seed)
    return sorted(
        i
        for label, places in strata.items()
        for i in sorted(places, key=lambda i: int(order[i]))[: taken[label]]
    )


def uniform(keys: Keys, seed: int) -> npt.NDArray[np.uint64]:
    """The keys as seeded uniform numbers: the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014)."""
    start = np.uint64((seed + 1) * _GOLDEN & _UINT64)
    with np.errstate(over="ignore"):
        z = keys + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
