"""How much of the differences between configurations each setting explains, to order axes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

MOST_GROUPS = 4
"""A numeric setting with more values than this is cut into as many groups of equal size: with a
group per value, anything explains everything."""


def importance(
    configurations: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> dict[str, float]:
    """Per key the correlation ratio (eta squared): the variance between the groups of equal setting
    over the variance of all `values`, 0 to 1. Interactions are not told apart. Keys come in falling
    order; all are 0 where nothing differs."""
    keys = list(dict.fromkeys(key for c in configurations for key in c))
    centre = fmean(values) if values else 0.0
    total = sum((v - centre) ** 2 for v in values)
    found = {}
    for key in keys:
        groups: dict[Any, list[float]] = {}
        for label, value in zip(_labels([c.get(key) for c in configurations]), values, strict=True):
            groups.setdefault(label, []).append(value)
        between = sum(len(g) * (fmean(g) - centre) ** 2 for g in groups.values())
        found[key] = between / total if total else 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _labels(settings: Sequence[Any]) -> list[Any]:
    numeric = all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings)
    distinct = sorted(set(settings)) if numeric else []
    if len(distinct) <= MOST_GROUPS:
        return [str(s) for s in settings]
    size = -(-len(distinct) // MOST_GROUPS)
    return [distinct.index(s) // size for s in settings]
