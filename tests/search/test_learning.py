"""Searches that learn: what comes next is a function of what is told; guesses and startup come
first; nothing comes twice; they get nearer to an optimum than draws that look at nothing."""

from __future__ import annotations

import importlib.util
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from crucible_tinkex.config.sweep.search import LEARNING
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.search.learned.learners import (
    GP_TOLD,
    Evolution,
    GaussianProcess,
    Told,
    TreeParzen,
)
from crucible_tinkex.search.learned.learning import LearningSearch
from crucible_tinkex.search.points.space import Space, Values
from crucible_tinkex.search.strategies import configurations, warnings
from experiments import RATE, RATES, experiment

SPACE = {RATE: RATES, "lora.rank": [4, 8, 16], "optimizer.schedule": ["linear", "cosine"]}
CHEAP = ("tpe", "cmaes")


def loss(values: Values) -> float:
    """Best at 1e-3, rank 8, cosine."""
    distance = math.log10(values[RATE] / 1e-3)
    other = values["optimizer.schedule"] != "cosine"
    return distance**2 + 0.2 * (values["lora.rank"] != 8) + 0.1 * other


def search(strategy: str, trials: int = 30, **more: Any) -> LearningSearch:
    return LearningSearch(
        experiment({"strategy": strategy, "trials": trials, "space": SPACE, **more})
    )


def run(
    asked: LearningSearch, count: int, measure: Callable[[Values], float] = loss
) -> tuple[list[Values], list[Told]]:
    found: list[Values] = []
    told: list[Told] = []
    known: set[object] = set()
    while len(found) < count:
        values = asked.next(told, known=known, number=len(found))
        if values is None:
            break
        found.append(values)
        known.add(asked.settings(values))
        if (places := asked.places(values)) is not None:
            told.append(Told(places, measure(values), ended=True))
    return found, told


@pytest.mark.parametrize("strategy", CHEAP)
def test_a_rebuilt_search_proposes_the_same_at_every_prefix(strategy: str) -> None:
    asked = search(strategy)
    found, told = run(asked, 30)
    for n in range(30):
        fresh = search(strategy)
        known = {fresh.settings(values) for values in found[:n]}
        assert fresh.next(told[:n], known=known, number=n) == found[n], n


def test_a_gaussian_process_gets_near_with_few_and_proposes_the_same_again() -> None:
    """Also beside one that runs and one that failed."""

    def asked() -> LearningSearch:
        return LearningSearch(experiment({"strategy": "gp", "trials": 6, "space": {RATE: RATES}}))

    found, told = run(asked(), 5, lambda values: math.log10(values[RATE] / 1e-3) ** 2)
    assert min(abs(math.log10(values[RATE] / 1e-3)) for values in found) < 0.3
    told = [*told[:3], Told(told[3].places, math.inf, ended=True), Told(told[4].places)]
    known = {asked().settings(values) for values in found}
    one, again = (asked().next(told, known=known, number=5) for _ in range(2))
    assert one == again is not None and asked().settings(one or {}) not in known


@pytest.mark.parametrize("strategy", CHEAP)
def test_the_seed_decides(strategy: str) -> None:
    one, again, other = (run(search(strategy, seed=s), 20)[0] for s in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("strategy", LEARNING)
def test_the_first_ones_are_known_beforehand(strategy: str) -> None:
    asked = experiment({"strategy": strategy, "trials": 30, "space": SPACE})
    first = configurations(asked)
    count = 6 if strategy == "auto" else 10
    assert len(first) == count
    assert run(LearningSearch(asked), count, lambda _: random.random())[0] == first
    qmc = experiment({"strategy": "qmc", "trials": count, "space": SPACE})
    assert configurations(qmc) == first, "evenly spread"


def test_few_trials_leave_some_to_choose() -> None:
    assert len(configurations(experiment({"strategy": "tpe", "trials": 9, "space": SPACE}))) == 3


@pytest.mark.parametrize("strategy", CHEAP)
def test_it_gets_nearer_than_draws_that_look_at_nothing(strategy: str) -> None:
    """The mean of what the last third of the trials cost: where the strategy looks."""

    def mean(runs: list[list[Values]]) -> float:
        return sum(loss(values) for found in runs for values in found)

    spread = [run(search(strategy, 200, seed=s), 60)[0][-20:] for s in range(3)]
    drawn = {"strategy": "random", "trials": 60, "space": SPACE}
    blind = [configurations(experiment({**drawn, "seed": s}))[-20:] for s in range(3)]
    assert mean(spread) < mean(blind) / 2


@pytest.mark.parametrize("strategy", CHEAP)
def test_nothing_comes_twice_and_a_small_space_ends(strategy: str) -> None:
    small = {"lora.rank": [1, 2, 4], "optimizer.schedule": ["constant", "linear"], **{}}
    asked = LearningSearch(
        experiment(
            {
                "strategy": strategy,
                "trials": 50,
                "space": {**small, "optimizer.warmup_steps": {"low": 1, "high": 3}},
                "when": {"optimizer.warmup_steps": "optimizer.schedule != 'constant'"},
                "where": ["lora.rank < 4 or optimizer.warmup_steps < 3"],
            }
        )
    )
    assert asked.total == 11
    found, _ = run(asked, 99, lambda values: float(values["lora.rank"]))
    assert len(found) == 11 == len({tuple(sorted(v.items())) for v in found})


@pytest.mark.parametrize("strategy", CHEAP)
def test_conditions_hold_for_what_is_proposed(strategy: str) -> None:
    """The optimum is excluded."""
    found, _ = run(search(strategy, 30, where=[f"{RATE} >= 1e-2"]), 30)
    assert len(found) == 30 and all(values[RATE] >= 1e-2 for values in found)


def test_guesses_come_first_also_later_and_outside_the_space() -> None:
    guesses = [{"lora.rank": 8, RATE: 1e-3, "optimizer.schedule": "linear"}, {"lora.rank": 999}]
    asked = search("tpe", 20, enqueue=guesses)
    found, told = run(asked, 20)
    assert found[:2] == guesses and len(found) == 20 and len(told) == 19
    late = search("tpe", 20, enqueue=guesses)
    known = {late.settings(values) for values in found[3:15]}
    assert late.next(told[3:15], known=known, number=12) == guesses[0]
    said = list(
        warnings(
            experiment({"strategy": "tpe", "trials": 20, "space": SPACE, "enqueue": guesses}), []
        )
    )
    assert any("search.enqueue[1] lies outside the space" in text for text in said)


@pytest.mark.parametrize("strategy", CHEAP)
def test_running_ones_are_kept_away_from(strategy: str) -> None:
    """Those asked for at once are different, and not all at the place that looks best."""
    asked = search(strategy, 60)
    found, told = run(asked, 14)
    known = {asked.settings(values) for values in found}
    for number in range(14, 18):
        values = asked.next(told, known=known, number=number)
        assert values is not None and asked.settings(values) not in known
        known.add(asked.settings(values))
        found.append(values)
        places = asked.places(values)
        assert places is not None
        told.append(Told(places))


def test_interim_losses_end_the_startup() -> None:
    """All run side by side and none has ended: TPE would draw at random for ever."""
    asked = search("tpe", 40)
    first = configurations(experiment({"strategy": "tpe", "trials": 40, "space": SPACE}))
    known = {asked.settings(values) for values in first}
    places = [asked.places(values) for values in first]
    running = [Told(p) for p in places if p]
    interim = [Told(p, loss(v), step=2) for p, v in zip(places, first, strict=True) if p]
    spread = asked.next(running, known=known, number=10)
    qmc = configurations(experiment({"strategy": "qmc", "trials": 11, "space": SPACE}))
    assert spread == qmc[10]
    assert asked.next(interim, known=known, number=10) not in (None, qmc[10])


@pytest.mark.parametrize("strategy", CHEAP)
def test_what_failed_or_diverged_counts_as_worst(strategy: str) -> None:
    bad = search(strategy, 40)
    found, told = run(bad, 14, lambda v: math.inf if v[RATE] > 1e-2 else loss(v))
    assert any(t.loss == math.inf for t in told)
    known = {bad.settings(values) for values in found}
    values = bad.next(told, known=known, number=14)
    assert values is not None
    told = [Told(t.places, math.inf, ended=True) for t in told]
    assert bad.next(told, known=known, number=14) is not None, "also where all are"


def test_a_changed_loss_is_forgotten() -> None:
    """What was interim when it was told, or was taken up again, is told anew."""
    dims = Space(experiment({"space": SPACE, "strategy": "tpe", "trials": 9})).dimensions
    rng = random.Random(0)
    told = [Told((rng.random(), rng.random(), 0.25), rng.random()) for _ in range(21)]
    later = [*told[:3], Told(told[3].places, -9.0), *told[4:]]
    for made in (TreeParzen, Evolution):
        used = made(dims)
        used.propose(told, seed=1)
        assert used.propose(later, seed=1) == made(dims).propose(later, seed=1)
        assert used.propose(told, seed=1) == made(dims).propose(told, seed=1)


def test_a_gaussian_process_is_told_the_best_and_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    class Looking:
        def __init__(self, **_: Any) -> None:
            return None

        def sample_relative(self, study: Any, trial: Any, space: Any) -> dict[str, float]:
            seen.extend(study.get_trials(deepcopy=False))
            return {"0": 0.5}

    monkeypatch.setattr(optuna.samplers, "GPSampler", Looking)
    dims = Space(experiment({"space": {RATE: RATES}, "strategy": "gp", "trials": 9})).dimensions
    told = [Told((i / 400,), (i * 37) % 400) for i in range(400)]
    assert GaussianProcess(dims).propose(told, seed=0) == (0.5,)
    assert len(seen) == GP_TOLD
    assert sorted(t.value for t in seen)[:50] == list(range(50))
    assert seen[-1].number == 399


def test_gp_without_torch_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'gp' needs torch.*crucible-tinkex\[local\].*'tpe'"):
        configurations(experiment({"strategy": "gp", "trials": 9, "space": SPACE}))


def test_what_cannot_learn_is_said() -> None:
    asked = experiment(
        {"strategy": "cmaes", "trials": 8, "space": SPACE}, run={"max_concurrent": 8}
    )
    said = list(warnings(asked, configurations(asked)))
    assert "all 8 configurations start before it has any" in said[0]
    assert "'optimizer.schedule' has no order, which 'cmaes' takes it to have" in said[1]
    sound = experiment({"strategy": "tpe", "trials": 30, "space": SPACE})
    assert list(warnings(sound, configurations(sound))) == []


def test_optuna_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys, crucible_tinkex\n"
        "import crucible_tinkex.sweep.preparing.preparation\n"
        "print({'optuna', 'cmaes', 'scipy', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
