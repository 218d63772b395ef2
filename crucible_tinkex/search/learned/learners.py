"""Where to look next, given what was measured: TPE, a Gaussian process, CMA-ES.

Pure functions of what is told and of a seed: a learner keeps nothing but what it could compute
again, so a study that is rebuilt from a journal proposes the same. Optuna's samplers are asked
directly, over trials that lie in the journal and not in a storage of Optuna's. Its `CmaEsSampler`
keeps its state in the storage of the study that asked, which a rebuilt study has not; so CMA-ES is
taken from `cmaes`, the library underneath it, and folded over what is told.

What a question costs, on two busy cores: TPE 5 to 10 ms at 100 told configurations and 25 ms at
1,000; CMA-ES 1 ms; a Gaussian process 0.3 to 1 s, whatever is told beyond `GP_TOLD`.

Everything happens in places, [0, 1] per dimension; a lower loss is better.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.points.dimensions import Dimension, Places

SLOW = ("gp",)
"""Strategies that take longer to choose than an event loop may stand still."""
GP_TOLD = 100
"""Points that a Gaussian process is told, the best and the newest: a fit is cubic in them."""
GP_RUNNING = 16
"""Running points that it is told, the newest."""
STEP_SIZE = 0.25
"""CMA-ES: standard deviation of the first generation, as a share of the range."""


@dataclass(frozen=True)
class Told:
    """One configuration that was tried."""

    places: Places
    loss: float | None = None
    """None while nothing is measured; infinite for one that failed or diverged."""
    step: int | None = None
    """Of an interim loss; None for a final one."""
    ended: bool = False
    """Whether it is trained no further."""

    @property
    def is_measured(self) -> bool:
        return self.loss is not None


class Learner(Protocol):
    """One strategy over the dimensions that it was made for."""

    @property
    def tries(self) -> int:
        """How often to ask again, with another seed, for what was tried already."""
        ...

    def propose(self, told: Sequence[Told], *, seed: int) -> Places:
        """At least one of `told` is measured. The order is that of asking."""
        ...


def learner(strategy: str, dimensions: Sequence[Dimension]) -> Learner:
    """For one of `config.sweep.search.LEARNING`; `auto` has none (`search.auto`)."""
    return _LEARNERS[strategy](dimensions)


def check_usable(strategy: str) -> None:
    """Raise `ConfigError` where what the strategy stands on is not installed."""
    if strategy == "gp" and importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "search.strategy 'gp' needs torch, which is not installed: "
            "pip install 'crucible-tinkex[local]', or use 'tpe'"
        )


class _Sampler:
    """An Optuna sampler over recorded trials."""

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        import optuna  # only when it is used

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._dimensions = dimensions
        self._space = {
            str(i): self._distribution(d) for i, d in enumerate(dimensions) if d.steps != 1
        }
        self._trials: dict[int, tuple[Told, Any]] = {}

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self._optuna.distributions
        if dimension.steps is None:
            return kinds.FloatDistribution(0.0, 1.0)
        if dimension.ordered:
            return kinds.IntDistribution(0, dimension.steps - 1)
        return kinds.CategoricalDistribution(tuple(range(dimension.steps)))

    def _ask(self, sampler: Any, trials: Sequence[Any]) -> Places:
        storage = _recorded(self._optuna, trials)
        study = self._optuna.create_study(storage=storage, sampler=sampler, direction="minimize")
        study_id = storage.get_study_id_from_name(study.study_name)
        number = 1 + max((t.number for t in trials), default=-1)
        asked = self._frozen(number, None, trial_id=storage.create_new_trial(study_id))
        found: Mapping[str, Any] = sampler.sample_relative(study, asked, self._space)
        return tuple(self._place(str(i), d, found) for i, d in enumerate(self._dimensions))

    @staticmethod
    def _place(name: str, dimension: Dimension, found: Mapping[str, Any]) -> float:
        if name not in found:
            return 0.5
        value = found[name]
        return float(value) if dimension.steps is None else (value + 0.5) / dimension.steps

    def _trial(self, number: int, told: Told) -> Any:
        """Optuna's form of it, made once."""
        known = self._trials.get(number)
        if known is None or known[0] != told:
            known = self._trials[number] = (told, self._frozen(number, told))
        return known[1]

    def _frozen(self, number: int, told: Told | None, *, trial_id: int = 0) -> Any:
        state, value, interim = self._outcome(told)
        params = {} if told is None else self._params(told.places)
        return self._optuna.trial.FrozenTrial(
            number=number,
            trial_id=trial_id,
            state=state,
            value=value,
            params=params,
            distributions=self._space if params else {},
            intermediate_values=interim,
            datetime_start=None,
            datetime_complete=None,
            user_attrs={},
            system_attrs={},
        )

    def _outcome(self, told: Told | None) -> tuple[Any, float | None, dict[int, float]]:
        """A measured trial counts as pruned where it stands, so that it is learnt from before it
        has ended."""
        states = self._optuna.trial.TrialState
        if told is None or told.loss is None:
            return states.RUNNING, None, {}
        if told.step is None:
            return states.COMPLETE, told.loss, {}
        return states.PRUNED, told.loss, {told.step: told.loss}

    def _params(self, places: Places) -> dict[str, Any]:
        return {
            str(i): place if d.steps is None else min(int(place * d.steps), d.steps - 1)
            for i, (d, place) in enumerate(zip(self._dimensions, places, strict=True))
            if d.steps != 1
        }


def _recorded(optuna: Any, trials: Sequence[Any]) -> Any:
    """A storage whose trials are these."""

    class Recorded(optuna.storages.InMemoryStorage):  # type: ignore[misc]
        def get_all_trials(
            self, study_id: int, deepcopy: bool = True, states: Any = None
        ) -> list[Any]:
            return [t for t in trials if states is None or t.state in states]

    return Recorded()


class TreeParzen(_Sampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate; Optuna's. Running
    trials count as bad ones, so that others are tried beside them."""

    tries = 8

    def propose(self, told: Sequence[Told], *, seed: int) -> Places:
        trials = [self._trial(i, t) for i, t in enumerate(told)]
        return self._ask(self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=0), trials)


class GaussianProcess(_Sampler):
    """Gaussian process with expected improvement, over running trials too (Optuna's `GPSampler`,
    on torch). What has not ended or was stopped counts with its last loss, what failed like the
    worst of those that did not."""

    tries = 2

    def propose(self, told: Sequence[Told], *, seed: int) -> Places:
        losses = {i: t.loss for i, t in enumerate(told) if t.loss is not None}
        worst = max(filter(math.isfinite, losses.values()), default=0.0)
        by_loss = sorted(losses, key=lambda i: (losses[i], i))
        best, rest = by_loss[: GP_TOLD // 2], sorted(by_loss[GP_TOLD // 2 :])
        running = [i for i in range(len(told)) if i not in losses][-GP_RUNNING:]
        trials = [
            self._trial(i, Told(told[i].places, min(losses[i], worst) if i in losses else None))
            for i in sorted([*best, *rest[-GP_TOLD // 2 :], *running])
        ]
        return self._ask(self._optuna.samplers.GPSampler(seed=seed, n_startup_trials=1), trials)


class Evolution:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) by `cmaes`. What is told forms generations in the
    order of asking; one is learnt from when all of it is measured. Choices that have no order are
    treated as if they had one."""

    tries = 16

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        import cmaes  # only when it is used

        self._cmaes = cmaes
        self._dims = len(dimensions)
        self._folded: list[Sequence[Told]] = []
        self._optimizer = self._fresh()

    def _fresh(self) -> Any:
        bounds = np.array([[0.0, 1.0]] * self._dims)
        mean = np.full(self._dims, 0.5)
        return self._cmaes.CMA(mean=mean, sigma=STEP_SIZE, bounds=bounds, seed=0)

    def propose(self, told: Sequence[Told], *, seed: int) -> Places:
        self._fold(told)
        self._optimizer._rng = np.random.RandomState(seed)
        return tuple(min(max(float(x), 0.0), 1.0) for x in self._optimizer.ask())

    def _fold(self, told: Sequence[Told]) -> None:
        """Learn from the whole generations at the start of `told`; from those before again only
        if one of them changed."""
        size = self._optimizer.population_size
        generations: list[Sequence[Told]] = []
        for start in range(0, len(told) - size + 1, size):
            generation = told[start : start + size]
            if not all(t.is_measured for t in generation):
                break
            generations.append(generation)
        if generations[: len(self._folded)] != self._folded:
            self._folded, self._optimizer = [], self._fresh()
        for generation in generations[len(self._folded) :]:
            # An infinite loss ranks last, and nothing but the rank is looked at.
            self._optimizer.tell([(np.array(t.places), t.loss) for t in generation])
            self._folded.append(generation)


_LEARNERS: Mapping[str, Callable[[Sequence[Dimension]], Learner]] = {
    "tpe": TreeParzen,
    "gp": GaussianProcess,
    "cmaes": Evolution,
}
