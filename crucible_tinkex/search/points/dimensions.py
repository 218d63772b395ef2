"""One dimension of a search space: an axis, or several that go together.

A dimension has rows (one value for each of its keys), finitely many or a whole range of them. Every
row has a place in [0, 1], so that draws, evolution strategies and surrogate models can speak of
the same point; equal steps in it are equally probable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_tinkex.config import Axis, AxisRange, is_integer
from crucible_tinkex.errors import ConfigError

DIGITS = 6
"""Significant digits of drawn numbers: enough for any setting, short enough to read."""
MAX_STEPS = 100
"""A range of more whole numbers is treated as a continuous one, and rounded."""

Row = tuple[Any, ...]
Places = tuple[float, ...]
"""A point: where it stands in each dimension."""


@dataclass(frozen=True)
class Dimension:
    """`rows`, in order; or a `span` of one key, whose grid `rows` are where it has a `count`."""

    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    span: AxisRange | None = None
    integer: bool = False
    repeats: int = 0
    """Rows that were given again, and count once."""

    @property
    def size(self) -> int | None:
        """How many rows there are; None for a continuous span."""
        if self.span is None:
            return len(self.rows)
        low, high = self.bounds
        return round(high) - round(low) + 1 if self.integer else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a span; whole numbers, where it has only those."""
        assert self.span is not None
        low, high = self.span.low, self.span.high
        if self.integer:
            return max(round(low), 1 if self.log else round(low)), round(high)
        return low, high

    @property
    def steps(self) -> int | None:
        """How many places there are that differ, where a model should treat them one by one."""
        if self.span is None:
            return len(self.rows)
        size = self.size
        return size if size is not None and size <= MAX_STEPS and not self.log else None

    @property
    def ordered(self) -> bool:
        """Whether neighbouring rows are more alike than others: numbers that rise or fall."""
        if self.span is not None:
            return True
        values = [row[0] for row in self.rows]
        if len(self.keys) > 1 or not all(_is_number(v) for v in values):
            return False
        return values in (sorted(values), sorted(values, reverse=True))

    @property
    def log(self) -> bool:
        return self.span is not None and self.span.log

    def all_rows(self) -> Sequence[Row]:
        """Every row of a finite dimension."""
        if self.span is None:
            return self.rows
        low, high = self.bounds
        return [(value,) for value in range(round(low), round(high) + 1)]

    def grid_rows(self) -> Sequence[Row]:
        """Those of a grid. Raises `ConfigError` for a span without `count`."""
        if not self.rows:
            raise ConfigError(f"search.space: {self.keys[0]!r} needs 'count' for a grid")
        return self.rows

    def at(self, place: float) -> Row:
        """The row at a place in [0, 1)."""
        if self.span is None:
            return self.rows[min(int(place * len(self.rows)), len(self.rows) - 1)]
        low, high = self.scaled_bounds()
        value = self._unscaled(low + (high - low) * place)
        first, last = self.bounds
        if self.integer:
            return (round(min(max(value, first), last)),)
        return (min(max(float(f"{value:.{DIGITS}g}"), first), last),)

    def place(self, wanted: Mapping[str, Any]) -> float | None:
        """Where the row with these values stands, in [0, 1]; None where there is none. Keys that
        are left out may have any value."""
        if self.span is None:
            places = [self.keys.index(key) for key in wanted]
            for i, row in enumerate(self.rows):
                if all(row[p] == wanted[self.keys[p]] for p in places):
                    return (i + 0.5) / len(self.rows)
            return None
        value = wanted[self.keys[0]]
        first, last = self.bounds
        if not _is_number(value) or not first <= value <= last:
            return None
        low, high = self.scaled_bounds()
        scaled = math.log(value) if self.log else value
        return min(max((scaled - low) / (high - low), 0.0), 1.0)

    def scaled_bounds(self) -> tuple[float, float]:
        """Of a span, between which places are shared out evenly: logarithms, where it has them."""
        low, high = self.bounds
        if self.integer:  # each whole number has a share of the same width around it
            low, high = low - 0.5, high + 0.5
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def _unscaled(self, scaled: float) -> float:
        return math.exp(scaled) if self.log else scaled


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dimensions(space: Mapping[str, Axis], zips: Sequence[Sequence[str]]) -> list[Dimension]:
    """In the order of the space. Raises `ConfigError` for axes that are empty or do not pair."""
    together = {key: tuple(keys) for keys in zips for key in keys}
    _check_zips(space, zips)
    found: dict[tuple[str, ...], Dimension] = {}
    for key, axis in space.items():
        keys = together.get(key, (key,))
        if keys not in found:
            found[keys] = _single(key, axis) if len(keys) == 1 else _paired(space, keys)
    return list(found.values())


def _single(key: str, axis: Axis) -> Dimension:
    given = [(value,) for value in _points(key, axis)]
    if isinstance(axis, AxisRange):
        return _dimension((key,), given, axis, integer=is_integer(key, axis))
    if not given:
        raise ConfigError(f"search.space: {key!r} has no values, so the space is empty")
    return _dimension((key,), given)


def _paired(space: Mapping[str, Axis], keys: tuple[str, ...]) -> Dimension:
    columns = [_points(key, space[key]) for key in keys]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1 or not lengths[0]:
        counts = ", ".join(f"{key} has {n}" for key, n in zip(keys, lengths, strict=True))
        raise ConfigError(f"search.zip: axes that go together need as many values each; {counts}")
    return _dimension(keys, list(zip(*columns, strict=True)))


def _dimension(
    keys: tuple[str, ...],
    given: Sequence[Row],
    span: AxisRange | None = None,
    *,
    integer: bool = False,
) -> Dimension:
    rows = tuple(dict.fromkeys(given))
    return Dimension(keys, rows, span, integer, len(given) - len(rows))


def _check_zips(space: Mapping[str, Axis], zips: Sequence[Sequence[str]]) -> None:
    seen: set[str] = set()
    for keys in zips:
        if len(keys) < 2:
            raise ConfigError(f"search.zip: {list(keys)} must name two keys or more")
        for key in keys:
            if key not in space:
                raise ConfigError(f"search.zip: {key!r} is no axis of search.space")
            if key in seen:
                raise ConfigError(f"search.zip: {key!r} stands there twice")
            seen.add(key)


def _points(key: str, axis: Axis) -> list[Any]:
    """The values of a list, or those that a range has in a grid; none without `count`."""
    if not isinstance(axis, AxisRange):
        return list(axis)
    points = _spaced(axis) if axis.count else []
    return [round(p) for p in points] if is_integer(key, axis) else points


def _spaced(axis: AxisRange) -> list[Any]:
    count = axis.count or 1
    if count == 1:
        return [axis.low]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    inner = [low + (high - low) * i / (count - 1) for i in range(1, count - 1)]
    middle = [float(f"{math.exp(p) if axis.log else p:.12g}") for p in inner]
    return [axis.low, *middle, axis.high]
