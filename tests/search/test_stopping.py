"""Successive halving, alone and against Optuna's pruner on the same histories."""

from __future__ import annotations

import random

import optuna
import pytest

from crucible_tinkex.search.stopping import Halving, NoStopping


@pytest.mark.parametrize(
    ("eta", "first", "total", "rungs"),
    [
        (2, 1, 8, (1, 2, 4, 8)),
        (3, 2, 18, (2, 6, 18)),
        (3, None, 90, (10, 30, 90)),
        (3, None, 4, (1, 3, 4)),
        (3, 5, 5, (5,)),
        (2, 9, 5, (5,)),
        (4, None, 1, (1,)),
    ],
)
def test_rungs(eta: int, first: int | None, total: int, rungs: tuple[int, ...]) -> None:
    assert Halving(eta, first).rungs(total) == rungs


def test_without_stopping_everybody_goes_on() -> None:
    assert NoStopping().rungs(7) == (7,)
    assert NoStopping().judge(99, 100, final=True) == "go"


@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("of", range(1, 14))
def test_the_best_share_goes_on_and_the_rest_waits_until_nobody_can_come(eta: int, of: int) -> None:
    rule = Halving(eta)
    open_ = [rule.judge(place, of, final=False) for place in range(of)]
    final = [rule.judge(place, of, final=True) for place in range(of)]
    assert open_ == ["go"] * (of // eta) + ["wait"] * (of - of // eta)
    assert final.count("go") == max(1, of // eta) and set(final) <= {"go", "stop"}
    assert final == sorted(final), "a worse place never goes on where a better one does not"


def test_who_shares_a_place_shares_the_verdict() -> None:
    losses = [1.0, 1.0, 1.0, 2.0]
    places = [sum(other < loss for other in losses) for loss in losses]
    verdicts = [Halving(2).judge(p, 4, final=True) for p in places]
    assert verdicts == ["go", "go", "go", "stop"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("eta", [2, 3])
def test_whoever_goes_on_at_once_is_whom_optuna_does_not_prune(seed: int, eta: int) -> None:
    """The same trials come to the same rung in the same order.

    Two differences, both wanted: Optuna lets the first ones pass while there are fewer than `eta`
    (so that something goes on), where ours wait until a better one may come or nobody can; and what
    Optuna prunes is gone, where ours waits and may go on when a worse one has come.
    """
    losses = [round(random.Random(seed).random(), 1 + i % 2) for i in range(20)]
    study = optuna.create_study(
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=eta, min_early_stopping_rate=0
        )
    )
    for count, loss in enumerate(losses, start=1):
        trial = study.ask()
        trial.report(loss, step=1)
        pruned = trial.should_prune()
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        if count >= eta:
            place = sum(other < loss for other in losses[:count])
            verdict = Halving(eta, 1).judge(place, count, final=False)
            assert verdict == ("wait" if pruned else "go"), (count, loss)
