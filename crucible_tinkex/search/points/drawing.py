"""Endless draws from a space that look at no results: at random, or evenly spread (`qmc`).

Both are functions of the seed and the draw's number alone, so more draws keep the earlier ones. A
finite space is drawn from until nothing new comes, then what is left follows in its own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.points.dimensions import Places
from crucible_tinkex.search.points.space import (
    Candidate,
    Space,
    candidates,
    distinct,
    trial_settings,
)

DRY_FINITE = 200
"""Draws in a row that bring nothing new after which a finite space is gone through in order."""
DRY = 20_000
"""The same for a space that cannot be gone through: its conditions leave almost nothing."""


def draws(experiment: Experiment, space: Space, *, spread: bool) -> Iterator[Candidate]:
    """Different configurations, each once; ends with a finite space. `spread`: a scrambled Sobol
    sequence instead of random points. Ends also where the conditions leave too little of a space to
    find more of it; raises `ConfigError` where nothing was found at all."""
    seed, dims = experiment.search.seed, len(space.dimensions)
    seen: set[object] = set()
    dry = 0
    for places in _sobol(dims, seed) if spread else _random(dims, seed):
        values = space.at(places)
        settings = None if values is None else trial_settings(experiment, values)
        dry += 1
        if values is not None and settings not in seen:
            seen.add(settings)
            dry = 0
            yield settings, values
        elif dry == DRY_FINITE and (everything := space.everything()) is not None:
            left = distinct(candidates(experiment, everything))
            yield from (candidate for candidate in left if candidate[0] not in seen)
            return
        elif dry == DRY and seen:
            return
        elif dry == DRY:
            raise ConfigError(f"search.where excludes all of {DRY:,} points drawn from the space")


def _random(dims: int, seed: int) -> Iterator[Places]:
    rng = np.random.default_rng(seed)
    while True:
        yield tuple(rng.random(dims).tolist())


def _sobol(dims: int, seed: int) -> Iterator[Places]:
    from scipy.stats import qmc  # half a second to import: only when it is used

    engine: Any = qmc.Sobol(dims, scramble=True, rng=seed)
    while True:
        yield tuple(engine.random(1)[0].tolist())


def count_up_to(experiment: Experiment, space: Space, wanted: int) -> int:
    """How many different configurations a space has, counted no further than `wanted`; `wanted`
    for a space that cannot be gone through."""
    everything = space.everything()
    if everything is None:
        return wanted
    return len(list(islice(distinct(candidates(experiment, everything)), wanted)))
