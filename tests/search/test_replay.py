"""The replay's bookkeeping, on a surface whose answers are known, and the recorded curves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import recorded_tasks, replay
from benchmarks.recorded_grid import HELD_OUT, RECORDED, Ledger, Surface, surfaces
from benchmarks.recorded_sweep import declared, replay_sweep
from crucible_tinkex.search.auto_settings import chosen

RATES, RANKS = (1e-4, 1e-3, 1e-2), (2, 8, 32)


def surface() -> Surface:
    """Nine points; the loss falls as 1/step to a floor; the one with the lowest floor is last at
    the first evaluation and first from the second one on."""
    points = [
        {"optimizer.learning_rate": lr, "lora.rank": rank, "train.batch_size": 4}
        for lr, rank in itertools.product(RATES, RANKS)
    ]
    steps = (2, 6, 18)
    floors = 1 + np.arange(9) / 10
    losses = np.array([[f + 1 / s for s in steps] for f in floors])
    losses[0, 0] = 9.0
    return Surface("made-up", "0", tuple(points), steps, losses, np.full(9, 18.0))


def test_training_is_paid_once_and_goes_on_where_it_stopped() -> None:
    ledger = Ledger(surface())
    assert ledger.train(3, 2) == pytest.approx(1.3 + 1 / 2) and ledger.spent == 2
    ledger.train(3, 5)  # the next evaluation is at 6
    assert ledger.spent == 6 and ledger.at == {3: 6}
    ledger.train(3, 2)
    assert ledger.spent == 6


def test_the_best_point_counts_when_it_is_trained_to_its_end() -> None:
    ledger = Ledger(surface())
    ledger.train(0, 6)
    assert ledger.killed and not ledger.found
    ledger.train(0, 18)
    assert ledger.found and ledger.reached == 18 and not ledger.killed


def test_a_rule_that_judges_too_early_kills_the_winner() -> None:
    found = surface()
    early, late = Ledger(found), Ledger(found)
    replay.stopping(found, rule="halving", first_rung=2)(early, 0)
    replay.stopping(found, rule="halving", first_rung=6)(late, 0)
    assert early.killed and not late.killed and late.found
    assert late.at[0] == 18 and sum(at == 18 for at in late.at.values()) == 3


def test_without_a_rule_everybody_is_trained() -> None:
    ledger = Ledger(surface())
    replay.stopping(surface())(ledger, 0)
    assert ledger.spent == surface().tokens.sum()


def test_a_search_may_end_when_it_has_found() -> None:
    ledger = Ledger(surface())
    replay.until_found(surface(), "random")(ledger, 3)
    assert ledger.found and ledger.spent == ledger.reached


def test_a_replay_is_a_sweep_whose_every_trial_has_its_reasons() -> None:
    found = surface()
    asked = declared(found, {"strategy": "auto"})
    experiment = chosen(asked, steps=found.total, records=[]).experiment
    state = replay_sweep(experiment, Ledger(found), seed=1)
    assert state.ended and not state.open
    reasons = [d.reason for t in state.trials.values() for d in t.decisions]
    assert all(reasons) and any("neighbour of the one in place 1" in r for r in reasons)
    assert len({repr(t.values) for t in state.trials.values()}) == len(state.trials)


@pytest.mark.parametrize("name", ["random", "asha, from 1/9", "hyperband", "auto", "tpe"])
def test_every_search_has_a_number_and_the_same_one_again(name: str) -> None:
    found = surface()
    search, _ = replay.searches(found, [found])[name]
    scores = replay.replay(found, search, range(3))
    assert all(0 < score.tokens <= 1 and 0 < score.trained <= 1 for score in scores)
    assert scores == replay.replay(found, search, range(3))


def test_processes_give_what_one_gives() -> None:
    names = ["random", "auto, no prior"]
    *_, table = replay.tables(2, only=names, processes=1)
    assert table == list(replay.tables(2, only=names, processes=2))[-1]
    assert all(f"| {name} | 2 |" in table for name in names)
    assert "Population based training is not among them" in table


def test_neighbours_of_the_best_make_up_for_a_rung_that_misled() -> None:
    """The best is last at the rung, and found because it lies beside the one that ended best."""
    found = surface()
    ledger = Ledger(found)
    replay.automatic(found, [])(ledger, 0)
    assert ledger.at[0] > 0


def test_the_data_are_the_same_every_time(tmp_path: Path) -> None:
    for task in recorded_tasks.TASKS:
        first, second = (recorded_tasks.write(task, "eval", tmp_path / x) for x in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert len(first.read_text().splitlines()) == recorded_tasks.ROWS["eval"]


def test_the_recorded_grids_are_whole_and_small() -> None:
    found = list(surfaces())
    tuned = set(recorded_tasks.TASKS) - set(recorded_tasks.HELD_OUT)
    assert {s.task for s in found} == tuned and len(found) == 8
    for of_task in found:
        assert len(of_task.points) >= 60 and np.isfinite(of_task.losses).all()
        assert of_task.losses[:, -1].max() > 1.5 * of_task.losses[:, -1].min()
    held_out = list(surfaces(HELD_OUT))
    assert {s.task for s in held_out} == set(recorded_tasks.HELD_OUT) and len(held_out) == 4
    assert all(len(s.points) == 48 and np.isfinite(s.losses).all() for s in held_out)
    folder = RECORDED.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    rows = pq.read_metadata(folder / "rows.parquet").num_rows
    assert rows == pq.read_metadata(RECORDED).num_rows * recorded_tasks.ROWS["eval"]
