"""Which configurations a sweep tries: a grid, a given list, drawn points, or what a search that
learns will choose.

A pure function of the experiment: the same file yields the same configurations in the same order,
so a resumed sweep finds its trials again. Of a search that learns only the first are known
beforehand; `learning` says the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from crucible_tinkex.config import Experiment, check_axes
from crucible_tinkex.config.sweep.search import LEARNING, SAMPLED
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.learned.learning import LearningSearch
from crucible_tinkex.search.points.drawing import draws
from crucible_tinkex.search.points.space import Candidate, Space, Values, candidates, distinct


def configurations(experiment: Experiment) -> list[Values]:
    """All that are known beforehand, distinct, in order. Raises `ConfigError` for an impossible
    search."""
    search = experiment.search
    _check(experiment)
    if learns(experiment):
        found = LearningSearch(experiment).beforehand()
    else:
        guesses = candidates(experiment, map(dict, search.enqueue))
        offered = distinct(itertools.chain(guesses, _candidates(experiment)))
        wanted = search.trials if search.strategy in SAMPLED else None
        found = [values for _, values in itertools.islice(offered, wanted)]
    if not found:
        raise ConfigError("search.where excludes every point of the space")
    return found


def learns(experiment: Experiment) -> bool:
    """Whether the search chooses its configurations by the results so far."""
    return experiment.search.strategy in LEARNING


def _check(experiment: Experiment) -> None:
    search = experiment.search
    check_axes(search.space)
    for config in search.enqueue:
        check_axes(config, where="search.enqueue")
    if search.strategy in SAMPLED:
        if search.trials is None:
            raise ConfigError(f"search.strategy {search.strategy!r} needs search.trials")
        if not search.space:
            raise ConfigError(f"search.strategy {search.strategy!r} needs a search.space")


def _candidates(experiment: Experiment) -> Iterator[Candidate]:
    search = experiment.search
    if search.strategy == "list":
        return candidates(experiment, _listed(experiment))
    space = Space(experiment)
    if search.strategy == "grid":
        return candidates(experiment, space.grid())
    return draws(experiment, space, spread=search.strategy == "qmc")


def _listed(experiment: Experiment) -> list[Values]:
    configs = experiment.search.configs
    if not configs:
        raise ConfigError("search.strategy 'list' needs search.configs = [{...}, ...]")
    for config in configs:
        check_axes(config, where="search.configs")
    return [dict(c) for c in configs]


def warnings(experiment: Experiment, found: Sequence[Values]) -> Iterator[str]:
    """What a careful colleague would say of the search. `found`: its `configurations`."""
    search = experiment.search
    yield from _on_repeats(experiment)
    if search.strategy not in SAMPLED or search.trials is None:
        return
    learning = LearningSearch(experiment) if learns(experiment) else None
    count = learning.total if learning else len(found)
    if count < search.trials and search.strategy != "auto":  # whose trials are at most so many
        yield (
            f"search.trials = {search.trials}, but the space has only {count} configurations: "
            "all run"
        )
    if learning:
        yield from _on_learning(experiment, learning)


def _on_repeats(experiment: Experiment) -> Iterator[str]:
    """What was asked for more than once is one configuration."""
    search = experiment.search
    if search.strategy == "list":
        listed = list(candidates(experiment, map(dict, search.configs)))
        repeats = {"search.configs": len(listed) - len(list(distinct(listed)))}
    else:
        is_grid = search.strategy == "grid"  # of a range, others do not take the points
        found = [d for d in Space(experiment).dimensions if d.span is None or is_grid]
        repeats = {f"search.space: {', '.join(map(repr, d.keys))}": d.repeats for d in found}
    for where, count in repeats.items():
        if count:
            yield (
                f"{where}: left out as repetitions: {count}; to train each several times, add "
                "search.seeds"
            )


def _on_learning(experiment: Experiment, search: LearningSearch) -> Iterator[str]:
    strategy, at_once = experiment.search.strategy, experiment.run.most_concurrent
    chosen = search.total - max(search.startup, at_once)
    if chosen <= 0 and strategy != "auto":
        yield (
            f"search.strategy {strategy!r} chooses by results, but all {search.total} "
            f"configurations start before it has any (the first {search.startup}, and those that "
            f"run.max_concurrent = {at_once} starts at once); more search.trials would be chosen"
        )
    for i, guess in enumerate(experiment.search.enqueue):
        if search.places(guess) is None:
            yield (
                f"search.enqueue[{i}] lies outside the space: it is tried, and {strategy!r} does "
                "not learn from it"
            )
    if strategy == "cmaes":
        for key in search.unordered:
            yield (
                f"search.space: {key!r} has no order, which 'cmaes' takes it to have; 'tpe' does "
                "not"
            )
