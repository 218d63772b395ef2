"""Sweeps whose configurations are chosen by their results: what is told, what is asked for after
a crash or an amendment, and that the answer is nearer than that of random draws."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench, numbers
from sweep_states import Journal

from crucible_tinkex.registry import (
    DONE,
    FAILED,
    LOST,
    RUNNING,
    STOPPED,
    Decision,
    TrialRecord,
)
from crucible_tinkex.search.learned import learners
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.proposing.trying import told_of
from crucible_tinkex.sweep.results.leaderboard import Objective, best

RATE = "optimizer.learning_rate"
SPACE = {
    RATE: {"low": 1e-6, "high": 1.0, "log": True},
    "lora.rank": {"low": 1, "high": 64, "log": True},
    "optimizer.beta1": {"low": 0.5, "high": 0.95},
}
SMALL = {"max_steps": 2, "batch_size": 4, "checkpoint_every": 0}
PLACES = (0.5,)


def searching(strategy: str, trials: int, **more: Any) -> dict[str, Any]:
    return {"strategy": strategy, "trials": trials, "space": SPACE, "reference": False, **more}


def configurations(journal: Journal | Bench) -> list[dict[str, Any]]:
    """In the order of asking."""
    found: dict[str, dict[str, Any]] = {}
    for trial in journal.state.trials.values():
        if not trial.reference:
            found.setdefault(repr(trial.values), trial.values)
    return list(found.values())


def cost(values: dict[str, Any]) -> float:
    return math.log10(values[RATE] / 1e-3) ** 2


# --- what is told -------------------------------------------------------------------------------


def trial(seed: int, state: str, results: dict[int, float]) -> TrialRecord:
    measured = {step: {"eval/nll": value} for step, value in results.items()}
    return TrialRecord("t", 0, "t", {}, seed, 8, state=state, results=measured)


@pytest.mark.parametrize(
    ("trials", "at", "told"),
    [
        ([(DONE, {8: 1.0}), (DONE, {8: 3.0})], "final", (2.0, None, True)),
        ([(DONE, {4: 0.5, 8: 1.0}), (DONE, {4: 9.0, 8: 3.0})], "best", (1.75, None, True)),
        ([(DONE, {8: 1.0}), (FAILED, {})], "final", (1.0, None, True)),
        ([(FAILED, {4: 1.0}), (FAILED, {})], "final", (math.inf, None, True)),
        ([(DONE, {8: math.nan}), (DONE, {8: 3.0})], "final", (math.inf, None, True)),
        ([(DONE, {4: 2.0, 8: 1.0}), (STOPPED, {4: 4.0})], "final", (3.0, 4, True)),
        ([(STOPPED, {2: 5.0, 4: 4.0}), (STOPPED, {2: 3.0})], "final", (4.0, 2, True)),
        ([(DONE, {8: 1.0}), (RUNNING, {})], "final", (1.0, 8, False)),
        ([(RUNNING, {2: 5.0}), (LOST, {2: 7.0})], "final", (6.0, 2, False)),
        ([(DONE, {8: 1.0})], "final", (1.0, 8, False)),
        ([(RUNNING, {}), (RUNNING, {})], "final", (None, None, False)),
    ],
)
def test_what_a_configuration_is_told_as(
    trials: list[tuple[str, dict[int, float]]], at: str, told: tuple[Any, ...]
) -> None:
    found = {seed: trial(seed, *given) for seed, given in enumerate(trials)}
    result = told_of(found, PLACES, Objective("eval/nll", "min", at), seeds=(0, 1))
    assert (result.loss, result.step, result.ended) == told


def test_a_metric_to_maximise_is_told_the_other_way() -> None:
    found = {0: trial(0, DONE, {8: 0.25})}
    assert told_of(found, PLACES, Objective("eval/nll", "max"), seeds=(0,)).loss == -0.25


# --- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("halving", [False, True])
@pytest.mark.parametrize("strategy", ["tpe", "cmaes"])
def test_a_rebuilt_study_asks_the_same_at_every_prefix(strategy: str, halving: bool) -> None:
    """`Journal.decide` compares with a fresh policy on a copy of the state each time."""
    journal = Journal(halving=halving, search=searching(strategy, 18, seeds=[0, 1]))
    journal.live(cost, slots=5)
    assert len(configurations(journal)) == 18
    assert len(journal.state.trials) == 36


def test_nothing_is_asked_for_that_is_not_started() -> None:
    """Asking costs: a full sweep only says whether there is more."""
    journal = Journal(search=searching("tpe", 6))
    asker = journal.policy._asker
    journal.decide(slots=2)
    assert asker.more(journal.state) and asker.ask(journal.state, 0) == []
    assert journal.decide(slots=2) == []


def test_a_configuration_comes_with_all_its_seeds_and_no_other_before() -> None:
    journal = Journal(search=searching("tpe", 4, seeds=[3, 4, 5]))
    while journal.decide(slots=2):
        for trial_id in journal.pending:
            journal.train(trial_id, 1.0)
    trials = list(journal.state.trials.values())
    assert [t.seed for t in trials] == [3, 4, 5] * 4
    assert len(configurations(journal)) == 4


def test_more_trials_and_seeds_go_on_from_what_there_is() -> None:
    def finish(journal: Journal) -> None:
        while journal.decide(slots=3):
            for trial_id in journal.pending:
                journal.train(trial_id, cost(journal.state.trials[trial_id].values))

    journal = Journal(search=searching("tpe", 12))
    finish(journal)
    first = configurations(journal)
    journal.ask(search=searching("tpe", 16, seeds=[0, 1]))
    journal.state.ended = None
    finish(journal)
    found = configurations(journal)
    assert found[:12] == first and len(found) == 16
    assert len(journal.state.trials) == 32
    pairs = [(repr(t.values), t.seed) for t in journal.state.trials.values()]
    assert len(set(pairs)) == 32, "never the same configuration and seed twice"


def test_a_grid_can_be_gone_on_with_by_a_search_that_learns() -> None:
    journal = Journal(search={"space": {RATE: {**SPACE[RATE], "count": 7}}})
    while journal.decide(slots=7):
        for trial_id in journal.pending:
            journal.train(trial_id, cost(journal.state.trials[trial_id].values))
    grid = configurations(journal)
    journal.ask(search={"strategy": "tpe", "trials": 12, "space": {RATE: SPACE[RATE]}})
    journal.state.ended = None
    assert journal.policy.planned == 12
    new = journal.decide(slots=9)
    assert len(new) == 5
    assert len(configurations(journal)) == 12 and configurations(journal)[:7] == grid


def test_float_noise_in_an_amendment_asks_for_nothing_again() -> None:
    journal = Journal(
        search={"space": {RATE: {"low": 1e-4, "high": 1e-3, "log": True, "count": 3}}}
    )
    journal.decide(slots=3)
    journal.ask(search={"space": {RATE: [1e-4, 10**-3.5, 1e-3, 2e-3]}})
    (started,) = journal.decide(slots=9)
    assert journal.state.trials[started.trial_id].values == {RATE: 2e-3}


# --- whole sweeps -------------------------------------------------------------------------------


def sweep(folder: Path, strategy: str, trials: int, *, slots: int = 4, **search: Any) -> Bench:
    bench = Bench(
        folder,
        train=SMALL,
        search=searching(strategy, trials, **search),
        evaluation={"generate": False},
        run={"max_concurrent": slots},
    )
    bench.run()
    return bench


def test_tpe_gets_nearer_than_random_draws(tmp_path: Path) -> None:
    """The same budget: the loss of the best, and how many of the trials taught something near it.
    The optimum lies at a rate of 1e-3 and the largest rank."""
    losses: dict[str, float] = {}
    near: dict[str, int] = {}
    for strategy in ("tpe", "random"):
        runs = [sweep(tmp_path / f"{strategy}{s}", strategy, 40, seed=s) for s in range(3)]
        found = [best(bench.state) for bench in runs]
        losses[strategy] = sum(w.mean or math.inf for w in found if w) / 3
        asked = [values for bench in runs for values in configurations(bench)[20:]]
        near[strategy] = sum(cost(values) < 0.25 for values in asked)
    assert losses["tpe"] < losses["random"]
    assert near["tpe"] > 2 * near["random"]


@pytest.mark.parametrize("strategy", ["tpe", "cmaes", "auto"])
def test_a_crash_in_the_middle_changes_no_configuration(tmp_path: Path, strategy: str) -> None:
    whole = sweep(tmp_path / "whole", strategy, 14, slots=1, seeds=[0, 1])
    bench = Bench(
        tmp_path / "cut",
        train=SMALL,
        search=searching(strategy, 14, seeds=[0, 1]),
        evaluation={"generate": False},
        run={"max_concurrent": 1},
    )

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(4.0)
        assert bench.controller
        bench.controller.request_drain()

    while (state := bench.run(meanwhile=interrupt)).state != DONE:
        assert bench.runs < 40
    assert bench.runs > 3
    assert configurations(bench) == configurations(whole)
    assert numbers(state) == numbers(whole.state)


def test_a_killed_driver_changes_no_configuration(tmp_path: Path) -> None:
    whole = sweep(tmp_path / "whole", "tpe", 12, slots=1)
    bench = Bench(
        tmp_path / "cut",
        train=SMALL,
        search=searching("tpe", 12),
        evaluation={"generate": False},
        run={"max_concurrent": 1},
    )

    async def kill(bench: Bench) -> None:
        await asyncio.sleep(3.5)
        for host in bench.hosts:
            host.die()
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__qualname__", "") == "Controller.run":
                task.cancel()

    with pytest.raises(asyncio.CancelledError):
        bench.run(meanwhile=kill)
    assert 2 < len(configurations(bench)) < 12
    bench.run()
    assert configurations(bench) == configurations(whole)
    assert numbers(bench.state) == numbers(whole.state)


def test_a_slow_choice_is_made_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is proposed does not matter here: where it is computed does, and that it is the same."""
    chosen_in: dict[str, set[bool]] = {"gp": set(), "tpe": set()}
    decide = Policy.decide

    def watched(self: Policy, *args: Any, **kwargs: Any) -> list[Decision]:
        strategy = self._planner.experiment.search.strategy
        chosen_in[strategy].add(threading.current_thread() is threading.main_thread())
        return decide(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "decide", watched)
    monkeypatch.setitem(learners._LEARNERS, "gp", learners.TreeParzen)
    slow, quick = (sweep(tmp_path / s, s, 8, slots=1) for s in ("gp", "tpe"))
    assert chosen_in == {"gp": {False}, "tpe": {True}}
    assert configurations(slow) == configurations(quick)


def test_halving_stops_what_tpe_then_leaves_alone(tmp_path: Path) -> None:
    stopping = {"rule": "halving", "eta": 2, "first_rung": 1}
    bench = sweep(tmp_path, "tpe", 16, slots=2, stopping=stopping)
    states = {t.state for t in bench.state.trials.values()}
    assert states == {DONE, STOPPED} and len(configurations(bench)) == 16


def test_a_state_is_read_but_not_changed() -> None:
    journal = Journal(search=searching("tpe", 8))
    journal.decide(slots=8)
    before = copy.deepcopy(journal.state)
    journal.fresh_policy()._asker.ask(journal.state, 3)
    assert journal.state == before
