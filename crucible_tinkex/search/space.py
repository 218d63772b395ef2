"""The search space: which settings vary, and over what.

An axis is a list of values or a range. Every point is checked against the experiment's own rules
before anything runs: a learning rate of 0 in a grid is refused in `plan`, not after an hour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crucible_tinkex.config import Axis, AxisRange, Experiment, is_integer
from crucible_tinkex.errors import ConfigError

MAX_GRID = 100_000
LENGTHS = ("train.epochs", "train.max_steps")

Values = dict[str, Any]
"""One configuration: dotted key to value, in the order of the space."""


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


def distinct(experiment: Experiment, points: Iterable[Values]) -> list[Values]:
    """The points that are different trials, the first of each, in order. Raises `ConfigError` for
    one that the experiment's rules refuse."""
    found: dict[tuple[object, ...], Values] = {}
    for values in points:
        configured = experiment.configured(values)
        _check_length(configured, values)
        found.setdefault((configured.lora, configured.optimizer, configured.train), values)
    return list(found.values())


def _check_length(configured: Experiment, values: Values) -> None:
    varied = [key for key in LENGTHS if key in values]
    if varied and configured.optimizer.schedule == "constant":
        raise ConfigError(
            f'search.space: {varied[0]!r} cannot vary under optimizer.schedule = "constant": the '
            "longer trial passes through the shorter one; train.eval_every measures both"
        )
