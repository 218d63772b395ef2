"""The search space: which settings vary, over what, with which others, under which conditions.

A point of the space is one row of each dimension; the configuration at a point has the values of
those keys that are active there (`search.when`). Points at which `search.where` does not hold are
none of the space's. Every configuration is checked against the experiment's own rules before
anything runs: a learning rate of 0 in a grid is refused in `plan`, not after an hour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import BaseModel

from crucible_tinkex.config import AXIS_SECTIONS, Experiment, check_axes
from crucible_tinkex.config.axes import NUMBERS
from crucible_tinkex.config.expression import Expression
from crucible_tinkex.config.sweep.search import TRAINING_DATA
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.points.dimensions import Dimension, Row, dimensions

MAX_GRID = 100_000
LENGTHS = ("train.epochs", "train.max_steps")
SAME_DIGITS = 9
"""Numbers that agree in so many significant digits are one: what differs is how they were
computed."""

Values = dict[str, Any]
"""One configuration: dotted key to value, in the order of the space."""
Candidate = tuple[object, Values]
"""A configuration behind its `trial_settings`, which tell it from others."""


class Space:
    """The space of an experiment. Raises `ConfigError` for one that is empty or contradictory."""

    def __init__(self, experiment: Experiment) -> None:
        search = experiment.search
        check_axes(search.space)
        self._declared = _declared(experiment)
        self._in_order = dimensions(search.space, search.zip)
        # A file that was written anew may have its tables in another order, and asks for the same.
        self.dimensions: Sequence[Dimension] = sorted(self._in_order, key=lambda d: d.keys)
        for d in self.dimensions:
            if d.span is not None:  # the experiment's rules refuse its ends, or nothing of it
                for end in d.bounds:
                    experiment.configured({d.keys[0]: end})
        self._keys = [key for d in self._in_order for key in d.keys]
        self._where = [self._condition("search.where", text) for text in search.where]
        self._when = self._conditions(search.when)

    @property
    def unordered(self) -> list[str]:
        """Keys whose values have no order, where there is more than one."""
        return [d.keys[0] for d in self.dimensions if not d.ordered and d.size != 1]

    def _configuration(self, rows: Iterable[tuple[Dimension, Row]]) -> Values | None:
        """The values at a point; None where the space's conditions exclude it."""
        given = {key: value for d, row in rows for key, value in zip(d.keys, row, strict=True)}
        for key, condition in self._when.items():
            if not self._holds(condition, given):
                del given[key]
        if not all(self._holds(condition, given) for condition in self._where):
            return None
        return {key: given[key] for key in self._keys if key in given}

    def places(self, values: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Where a configuration stands in each dimension, in [0, 1]; None for one outside the
        space. A key that is not active there stands in the middle, wherever it was drawn."""
        if not values.keys() <= set(self._keys) or not self._allows(values):
            return None
        found = [self._place(d, values) for d in self.dimensions]
        return None if None in found else tuple(place for place in found if place is not None)

    def _place(self, dimension: Dimension, values: Mapping[str, Any]) -> float | None:
        active = [key for key in dimension.keys if self._is_active(key, values)]
        if not active:
            return 0.5
        return dimension.place({key: values.get(key, self._declared[key]) for key in active})

    def at(self, places: Sequence[float]) -> Values | None:
        """The configuration at places in [0, 1); None where conditions exclude it."""
        pairs = zip(self.dimensions, places, strict=True)
        return self._configuration((d, d.at(place)) for d, place in pairs)

    def completed(self, known: Mapping[str, Any]) -> Values | None:
        """The configuration with these values, and the middle of whatever they leave open; None
        where there is none."""
        places = []
        for d in self.dimensions:
            given = {key: known[key] for key in d.keys if key in known}
            places.append(d.place(given) if given else 0.5)
        found = None if None in places else self.at([p for p in places if p is not None])
        return found and {key: known.get(key, value) for key, value in found.items()}

    def grid(self) -> Iterator[Values]:
        """The product of the dimensions' grids; an empty space is the one configuration with
        nothing changed."""
        return self._product([d.grid_rows() for d in self._in_order])

    def everything(self) -> Iterator[Values] | None:
        """All configurations of a small finite space; None for another."""
        sizes = [d.size for d in self.dimensions]
        if None in sizes or math.prod(s or 0 for s in sizes) > MAX_GRID:
            return None
        return self._product([d.all_rows() for d in self._in_order])

    def _product(self, rows: Sequence[Sequence[Row]]) -> Iterator[Values]:
        size = math.prod(map(len, rows))
        if size > MAX_GRID:
            raise ConfigError(f"search.space: the grid has {size:,} points; at most {MAX_GRID:,}")
        for point in itertools.product(*rows):
            values = self._configuration(zip(self._in_order, point, strict=True))
            if values is not None:
                yield values

    # --- conditions -----------------------------------------------------------------------------

    def _condition(self, where: str, text: str) -> Expression:
        found = Expression.parse(text)
        for key in sorted(found.keys - self._declared.keys()):
            check_axes([key], where=f"{where}: {text!r}")
        return found

    def _conditions(self, when: Mapping[str, str]) -> dict[str, Expression]:
        """In an order in which what a condition looks at is decided before it."""
        found = {}
        for key, text in when.items():
            if key not in self._keys:
                raise ConfigError(f"search.when: {key!r} is no axis of search.space")
            found[key] = self._condition(f"search.when.{key}", text)
        sorter = TopologicalSorter({key: found[key].keys & found.keys() for key in found})
        try:
            return {key: found[key] for key in sorter.static_order()}
        except CycleError as e:
            raise ConfigError(f"search.when: {' needs '.join(e.args[1])}: a circle") from None

    def _holds(self, condition: Expression, given: Mapping[str, Any]) -> bool:
        return condition.holds(lambda key: given.get(key, self._declared[key]))

    def _is_active(self, key: str, values: Mapping[str, Any]) -> bool:
        return key not in self._when or self._holds(self._when[key], values)

    def _allows(self, values: Mapping[str, Any]) -> bool:
        """Whether the space's conditions hold, and every key in it is active."""
        if not all(self._is_active(key, values) for key in values):
            return False
        return all(self._holds(condition, values) for condition in self._where)


def _declared(experiment: Experiment) -> dict[str, Any]:
    """What a key is where it does not vary."""
    declared = {
        f"{name}.{field}": value
        for name in AXIS_SECTIONS
        for field, value in getattr(experiment, name)
    }
    numbers = {f"{NUMBERS}.{name}": n for name, n in experiment.train.weight_config.items()}
    data = {TRAINING_DATA: experiment.data.name}
    return {**dict.fromkeys(experiment.search.space), **declared, **numbers, **data}


def candidates(experiment: Experiment, points: Iterable[Values]) -> Iterator[Candidate]:
    """Raises `ConfigError` for a point that the experiment's rules refuse."""
    return ((trial_settings(experiment, values), values) for values in points)


def distinct(found: Iterable[Candidate]) -> Iterator[Candidate]:
    """Those that are different trials, the first of each, in order."""
    seen: set[object] = set()
    for settings, values in found:
        if settings not in seen:
            seen.add(settings)
            yield settings, values


_PLAIN = (int, str, bool)


def trial_settings(experiment: Experiment, values: Mapping[str, Any]) -> object:
    """What two configurations share that are the same trials, up to the noise of computed numbers.
    Raises `ConfigError` for values that the experiment's rules refuse."""
    configured = experiment.configured(values)
    _check_length(configured, values)
    return tuple(_settings(getattr(configured, name)) for name in AXIS_SECTIONS)


def _settings(section: BaseModel) -> tuple[object, ...]:
    return tuple(_setting(value) for value in vars(section).values())


def _setting(value: object) -> object:
    if value is None or type(value) in _PLAIN:  # most are, and asking for a Mapping is slow
        return value
    if isinstance(value, Mapping):
        return tuple(sorted((name, _setting(inner)) for name, inner in value.items()))
    return f"{value:.{SAME_DIGITS}g}" if isinstance(value, float) else value


def _check_length(configured: Experiment, values: Mapping[str, Any]) -> None:
    varied = [key for key in LENGTHS if key in values]
    if varied and configured.optimizer.schedule == "constant":
        raise ConfigError(
            f'search.space: {varied[0]!r} cannot vary under optimizer.schedule = "constant": the '
            "longer trial passes through the shorter one; train.eval_every measures both. Where "
            "the schedule varies, too, let the length vary under the others: "
            f"search.when.{varied[0]} = \"optimizer.schedule != 'constant'\""
        )
