"""Population based training: the worst are replaced by clones of the best, again after a crash."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench
from sweep_states import Journal

from crucible_tinkex.config.sweep.search import StoppingSection
from crucible_tinkex.registry import DONE, STOPPED, Decision
from crucible_tinkex.search.stopping import Population, Standing, fifth

STOPPING = {"rule": "population", "every": 2}
RATES = [1e-5, 1e-4, 1e-3, 3e-3]
SPACE = {"optimizer.learning_rate": RATES}


def sweep(**search: Any) -> Journal:
    return Journal(search={"space": SPACE, "stopping": STOPPING, **search})


def at_rung(made: Journal, losses: list[float], *, slots: int = 4) -> list[Decision]:
    """All members have reached the first rung."""
    made.decide(slots=slots)
    for trial_id, loss in zip(made.pending, losses, strict=True):
        made.train(trial_id, loss)
        made.save(trial_id, 2)
    return made.decide(slots=slots)


def test_a_clone_of_the_best_replaces_the_worst() -> None:
    made = sweep()
    decided = at_rung(made, [4.0, 1.0, 2.0, 3.0])
    trials = list(made.state.trials.values())
    assert [d.kind for d in decided] == ["stop", "fork", "advance", "advance", "advance"]
    worst, best, clone = trials[0], trials[1], trials[4]
    assert worst.state == STOPPED and "place 4 of 4" in (worst.error or "")
    assert clone.origin is not None and clone.origin.parent == best.trial_id
    assert (clone.origin.step, clone.origin.path) == (2, best.checkpoints[-1].path)
    rate = clone.values["optimizer.learning_rate"]
    assert rate in (RATES[1] * 0.8, RATES[1] * 1.2)
    assert (clone.target, clone.index, clone.seed) == (4, 4, best.seed)


def test_of_eight_the_two_worst_follow_the_two_best() -> None:
    made = sweep(space={"optimizer.learning_rate": [1e-4 * (n + 1) for n in range(8)]})
    at_rung(made, [float(8 - n) for n in range(8)], slots=8)
    trials = list(made.state.trials.values())
    assert [t.state == STOPPED for t in trials] == [True] * 2 + [False] * 8
    parents = {t.index: t.origin.parent for t in trials if t.origin}
    assert parents == {8: trials[6].trial_id, 9: trials[7].trial_id} or parents == {
        8: trials[7].trial_id,
        9: trials[6].trial_id,
    }


def test_all_wait_for_the_last() -> None:
    made = sweep()
    made.decide(slots=4)
    for trial_id, loss in zip(made.pending[:3], [3.0, 2.0, 1.0], strict=True):
        made.train(trial_id, loss)
        made.save(trial_id, 2)
    assert made.decide(slots=4) == []


def test_with_fewer_slots_members_take_turns_and_it_ends_the_same() -> None:
    made = sweep()
    for _ in range(20):
        made.decide(slots=2)
        for trial_id in made.pending:
            trial = made.state.trials[trial_id]
            made.train(trial_id, 1.0 + trial.index / 10)
            made.save(trial_id, trial.target)
    assert made.state.ended
    forks = [t for t in made.state.trials.values() if t.origin]
    assert [t.origin.step for t in forks if t.origin] == [2, 4, 6]
    assert sum(t.state == DONE for t in made.state.trials.values()) == 4


def test_the_perturbation_follows_the_seed() -> None:
    found = set()
    for seed in range(8):
        made = sweep(seed=seed)
        at_rung(copy.deepcopy(made), [4.0, 1.0, 2.0, 3.0])
        at_rung(made, [4.0, 1.0, 2.0, 3.0])
        found.add(list(made.state.trials.values())[4].values["optimizer.learning_rate"])
    assert len(found) == 2


def test_equals_are_left_alone() -> None:
    assert {d.kind for d in at_rung(sweep(), [1.0] * 4)} == {"advance"}


def test_without_a_checkpoint_nobody_is_replaced_and_nobody_is_lost() -> None:
    made = sweep()
    made.decide(slots=4)
    for trial_id, loss in zip(made.pending, [4.0, 1.0, 2.0, 3.0], strict=True):
        made.train(trial_id, loss)
    assert {d.kind for d in made.decide(slots=4)} == {"advance"}


def test_the_adapters_shape_is_inherited() -> None:
    made = Journal(search={"space": {"lora.rank": [2, 4, 8, 16]}, "stopping": STOPPING})
    at_rung(made, [4.0, 1.0, 2.0, 3.0])
    clone = list(made.state.trials.values())[4]
    assert clone.values["lora.rank"] == 4 and "optimizer.learning_rate" in clone.values


def test_a_fifth_of_few_is_one_and_of_one_none() -> None:
    assert [fifth(n) for n in (1, 2, 3, 4, 7, 8, 12, 20)] == [0, 1, 1, 1, 1, 2, 2, 4]
    alone = Standing(2, 0, [1.0], final=True, total_steps=8)
    assert Population().judge(alone) == "go"


def test_it_stands_alone() -> None:
    with pytest.raises(ValueError, match="population"):
        StoppingSection(rule=("population", "halving"))
    with pytest.raises(ValueError, match="take it alone"):
        StoppingSection(rule=("population", "divergence"))


def test_a_population_trains_to_its_end_and_shows_its_lineage(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search={"space": SPACE, "stopping": STOPPING, "reference": False})
    state = bench.run()
    trials = state.trials.values()
    assert state.complete and sum(t.state == DONE for t in trials) == 4
    clones = [t for t in trials if t.origin]
    assert clones and all(t.origin and t.origin.parent in state.trials for t in clones)
    assert all(t.step == 8 for t in trials if t.state == DONE)
