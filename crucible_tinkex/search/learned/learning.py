"""A search that learns: which configuration comes next, given those that were tried.

A function of the experiment and of what is told, so that a sweep that is resumed asks for the same
configuration again. Guesses come first (`search.enqueue`), then points that are evenly spread until
enough is measured, then what the strategy proposes. What was tried, or what the space's conditions
exclude, is proposed again with another seed; where that does not help, the next evenly spread point
is taken. No configuration comes twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search import auto
from crucible_tinkex.search.learned.learners import Learner, Told, check_usable, learner
from crucible_tinkex.search.neighbourhood import Neighbourhood
from crucible_tinkex.search.points.dimensions import Places
from crucible_tinkex.search.points.drawing import count_up_to, draws
from crucible_tinkex.search.points.space import (
    Candidate,
    Space,
    Values,
    candidates,
    distinct,
    trial_settings,
)

MOST_STARTUP = 10


class LearningSearch:
    """Over the space of an experiment with one of the strategies `LEARNING`. Raises `ConfigError`
    where the space or the strategy cannot be used."""

    def __init__(self, experiment: Experiment) -> None:
        search = experiment.search
        if search.trials is None:
            raise ConfigError(f"search.strategy {search.strategy!r} needs search.trials")
        check_usable(search.strategy)
        self._experiment = experiment
        self._space = Space(experiment)
        self._guesses = dict(distinct(candidates(experiment, map(dict, search.enqueue))))
        outside = sum(self._space.places(g) is None for g in self._guesses.values())
        inside = count_up_to(experiment, self._space, search.trials)
        self.total = min(search.trials, inside + outside)
        """How many configurations will be tried."""
        self.startup = min(MOST_STARTUP, max(2, math.ceil(search.trials / 3)))
        """How many must be measured before the strategy is asked."""
        if search.strategy == "auto":
            self.startup = min(self.total, auto.first(len(self._guesses)))
        spread = draws(experiment, self._space, spread=True)
        self._rest = distinct(itertools.chain(self._guesses.items(), spread))
        self._first: list[Candidate] = []

    @cached_property
    def _learner(self) -> Learner:
        return learner(self._experiment.search.strategy, self._space.dimensions)

    @property
    def unordered(self) -> list[str]:
        """See `Space.unordered`."""
        return self._space.unordered

    def beforehand(self) -> list[Values]:
        """The configurations that come first whatever is measured."""
        wanted = min(self.total, max(self.startup, len(self._guesses)))
        return [dict(values) for _, values in itertools.islice(self._in_order(), wanted)]

    def settings(self, values: Mapping[str, Any]) -> object:
        """What makes a configuration one of its own."""
        return trial_settings(self._experiment, values)

    def is_guess(self, settings: object) -> bool:
        """Whether these are the settings of one of `search.enqueue`."""
        return settings in self._guesses

    def places(self, values: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Where it stands in the space; None for one that the strategy cannot learn from."""
        return self._space.places(values)

    def next(self, told: Sequence[Told], *, known: Container[object], number: int) -> Values | None:
        """The configuration with this number, counted from 0 in the order of asking. `told`: all
        that stand in the space, in that order; `known`: the settings of all that were asked for.
        None when the space has no other."""
        guesses = self._guesses.items()
        guess = next((values for settings, values in guesses if settings not in known), None)
        if guess is not None:
            return guess
        if sum(t.is_measured for t in told) >= self.startup:
            proposed = self._proposed(told, known, number)
            if proposed is not None:
                return proposed
        return self.next_spread(known)

    def next_spread(self, known: Container[object]) -> Values | None:
        """The first of the guesses and evenly spread points that is not known."""
        return next((v for settings, v in self._in_order() if settings not in known), None)

    @cached_property
    def neighbourhood(self) -> Neighbourhood:
        return Neighbourhood(self._space.dimensions)

    def new_at(self, places: Places, known: Container[object]) -> Values | None:
        """The configuration at places; None where there is none, or it is known."""
        values = self._space.at(places)
        return values if values is not None and self._is_new(values, known) else None

    def _proposed(
        self, told: Sequence[Told], known: Container[object], number: int
    ) -> Values | None:
        rejected: list[Told] = []
        for attempt in range(self._learner.tries):
            seed = _seed(self._experiment.search.seed, number, attempt)
            places = self._learner.propose([*told, *rejected], seed=seed)
            if (values := self.new_at(places, known)) is not None:
                return values
            rejected.append(Told(places))
        return None

    def _is_new(self, values: Values, known: Container[object]) -> bool:
        try:
            return self.settings(values) not in known
        except ConfigError:
            return False  # the experiment's rules exclude it as a condition would

    def _in_order(self) -> Iterator[Candidate]:
        """The guesses, then evenly spread points; drawn once, as far as they are asked for."""
        for i in itertools.count():
            if i == len(self._first):
                following = next(self._rest, None)
                if following is None:
                    return
                self._first.append(following)
            yield self._first[i]


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
