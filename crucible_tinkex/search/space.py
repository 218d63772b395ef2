"""The search space: which settings vary, and over what.

An axis is a list of values or a range. Every point is checked against the experiment's own rules
before anything runs: a learning rate of 0 in a grid is refused in `plan`, not after an hour.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from crucible_tinkex.config import (
    NOT_APPLIED,
    Axis,
    AxisRange,
    Experiment,
    axis_keys,
)
from crucible_tinkex.errors import ConfigError

MAX_GRID = 100_000

Values = dict[str, Any]
"""One configuration: dotted key to value, in the order of the space."""


def check_keys(keys: Mapping[str, Any] | list[str]) -> None:
    """Raise `ConfigError` for a key that cannot vary, naming those that can."""
    legal = axis_keys()
    for key in keys:
        if key in NOT_APPLIED:
            raise ConfigError(
                f"search.space: {key!r} cannot vary: the Tinker API does not apply it"
            )
        if key not in legal:
            close = difflib.get_close_matches(key, legal, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"search.space: unknown axis {key!r}; {hint}legal: {', '.join(sorted(legal))}"
            )


def is_integer(key: str, axis: AxisRange) -> bool:
    """Whether the axis yields whole numbers."""
    annotation = str(axis_keys().get(key))
    return axis.integer or ("int" in annotation and "float" not in annotation)


def grid_values(key: str, axis: Axis) -> list[Any]:
    """The points of one axis of a grid, in order, without repetition."""
    if isinstance(axis, AxisRange):
        if axis.count is None:
            raise ConfigError(f"search.space: {key!r} needs 'count' for a grid")
        points = _spaced(axis)
        if is_integer(key, axis):
            points = [round(p) for p in points]
        return list(dict.fromkeys(points))
    if not axis:
        raise ConfigError(f"search.space: {key!r} has no values, so the grid is empty")
    return list(dict.fromkeys(axis))


def _spaced(axis: AxisRange) -> list[Any]:
    count = axis.count or 1
    if count == 1:
        return [axis.low]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    inner = [low + (high - low) * i / (count - 1) for i in range(1, count - 1)]
    middle = [float(f"{math.exp(p) if axis.log else p:.12g}") for p in inner]
    return [axis.low, *middle, axis.high]


def grid(space: Mapping[str, Axis]) -> Iterator[Values]:
    """The Cartesian product; an empty space is the one configuration with nothing changed."""
    axes = [grid_values(k, a) for k, a in space.items()]
    size = math.prod(len(a) for a in axes)
    if size > MAX_GRID:
        raise ConfigError(f"search.space: the grid has {size:,} points; at most {MAX_GRID:,}")
    for point in itertools.product(*axes):
        yield dict(zip(space, point, strict=True))


def check_points(experiment: Experiment, points: list[Values]) -> None:
    """Raise `ConfigError` for the first point that the experiment's rules refuse."""
    for values in points:
        experiment.with_values(values)
