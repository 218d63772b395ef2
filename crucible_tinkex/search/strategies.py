"""Which configurations a sweep tries: a grid, a given list, or points drawn by Optuna.

A pure function of the experiment: the same file yields the same configurations in the same order,
so a resumed sweep finds its trials again.
"""

from __future__ import annotations

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
    return _ask(search, search.trials)


def _ask(search: SearchSection, count: int) -> list[Values]:
    import optuna  # a second to import: only when it is used

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=search.seed)
    space = {k: _distribution(optuna, k, a) for k, a in search.space.items()}
    study = optuna.create_study(sampler=sampler, direction="minimize")
    points = []
    for _ in range(count):
        trial = study.ask(space)
        points.append({k: trial.params[k] for k in search.space})
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return points


def _distribution(optuna: object, key: str, axis: Axis) -> object:
    kinds = optuna.distributions  # type: ignore[attr-defined]
    if not isinstance(axis, AxisRange):
        return kinds.CategoricalDistribution(axis)
    if is_integer(key, axis):
        return kinds.IntDistribution(round(axis.low), round(axis.high), log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
