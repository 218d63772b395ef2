"""Which configurations a sweep tries: a grid, a given list, or points drawn by Optuna.

A pure function of the experiment: the same file yields the same configurations in the same order,
so a resumed sweep finds its trials again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from crucible_tinkex.config import (
    Axis,
    AxisRange,
    Experiment,
    SearchSection,
    check_axes,
    is_integer,
)
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.space import Values, distinct, grid

DRAWS_PER_POINT = 20


def configurations(experiment: Experiment) -> list[Values]:
    """All configurations, distinct, in order. Raises `ConfigError` for an impossible search."""
    search = experiment.search
    check_axes(search.space)
    if search.strategy == "list":
        points = _listed(search)
    elif search.strategy == "grid":
        points = list(grid(search.space))
    else:
        points = _drawn(search)
    return distinct(experiment, points)


def _listed(search: SearchSection) -> list[Values]:
    if not search.configs:
        raise ConfigError("search.strategy 'list' needs search.configs = [{...}, ...]")
    for config in search.configs:
        check_axes(config)
    return [dict(c) for c in search.configs]


def _drawn(search: SearchSection) -> list[Values]:
    if search.trials is None:
        raise ConfigError(f"search.strategy {search.strategy!r} needs search.trials")
    if not search.space:
        raise ConfigError(f"search.strategy {search.strategy!r} needs a search.space")
    empty = [key for key, axis in search.space.items() if axis == ()]
    if empty:
        raise ConfigError(f"search.space: {empty[0]!r} has no values")
    return _ask(search, search.trials)


def _ask(search: SearchSection, count: int) -> list[Values]:
    """The first `count` different draws; of a space that has no more points than that, all."""
    wanted = count if search.points is None else min(count, search.points)
    found: dict[tuple[object, ...], Values] = {}
    for values in itertools.islice(_draws(search), DRAWS_PER_POINT * wanted):
        found.setdefault(tuple(values.values()), values)
        if len(found) == wanted:
            break
    if len(found) < wanted and search.points is not None:  # the last ones of a small space are rare
        for values in _all(search):
            found.setdefault(tuple(values.values()), values)
    return list(found.values())[:wanted]


def _draws(search: SearchSection) -> Iterator[Values]:
    """Endless, and the same for the same seed however many are taken."""
    import optuna  # a second to import: only when it is used

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=search.seed)
    space = {k: _distribution(optuna, k, a) for k, a in search.space.items()}
    study = optuna.create_study(sampler=sampler, direction="minimize")
    while True:
        trial = study.ask(space)
        yield {k: trial.params[k] for k in search.space}
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def _all(search: SearchSection) -> Iterator[Values]:
    axes = {k: _integers(a) if isinstance(a, AxisRange) else a for k, a in search.space.items()}
    return grid(axes)


def _integers(axis: AxisRange) -> tuple[int, ...]:
    return tuple(range(round(axis.low), round(axis.high) + 1))


def _distribution(optuna: object, key: str, axis: Axis) -> object:
    kinds = optuna.distributions  # type: ignore[attr-defined]
    if not isinstance(axis, AxisRange):
        return kinds.CategoricalDistribution(axis)
    if is_integer(key, axis):
        return kinds.IntDistribution(round(axis.low), round(axis.high), log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
