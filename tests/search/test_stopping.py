"""Successive halving, alone and against Optuna's pruner on the same histories."""

from __future__ import annotations

import math
import random

import optuna
import pytest

from crucible_tinkex.search.stopping import (
    AllOf,
    Behind,
    Divergence,
    Halving,
    Hyperband,
    Median,
    NoStopping,
    Plateau,
    Standing,
    Threshold,
    TopK,
)


def standing(place: int, of: int, *, final: bool = False) -> Standing:
    return Standing(1, place, [float(n) for n in range(of)], final)


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
    assert NoStopping().judge(standing(99, 100, final=True)) == "go"


@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("of", range(1, 14))
def test_the_best_share_goes_on_and_the_rest_waits_until_nobody_can_come(eta: int, of: int) -> None:
    rule = Halving(eta)
    open_ = [rule.judge(standing(place, of)) for place in range(of)]
    final = [rule.judge(standing(place, of, final=True)) for place in range(of)]
    assert open_ == ["go"] * (of // eta) + ["wait"] * (of - of // eta)
    assert final.count("go") == max(1, of // eta) and set(final) <= {"go", "stop"}
    assert final == sorted(final), "a worse place never goes on where a better one does not"


def test_who_shares_a_place_shares_the_verdict() -> None:
    losses = [1.0, 1.0, 1.0, 2.0]
    places = [sum(other < loss for other in losses) for loss in losses]
    verdicts = [Halving(2).judge(standing(p, 4, final=True)) for p in places]
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
            verdict = Halving(eta, 1).judge(standing(place, count))
            assert verdict == ("wait" if pruned else "go"), (count, loss)


def at(loss: float, rivals: list[float], curve: list[float] | None = None) -> Standing:
    """A trial among rivals, at its newest step."""
    losses = sorted([loss, *rivals])
    mine = [*(curve or []), loss]
    return Standing(len(mine), losses.index(loss), losses, False, 100, lambda: mine)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("startup", [1, 3, 5])
def test_median_stops_whom_optuna_prunes(seed: int, startup: int) -> None:
    """Rivals are complete, as Optuna wants them; ours counts those that still train, too."""
    rng = random.Random(seed)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=0)
    study = optuna.create_study(pruner=pruner)
    complete: list[list[float]] = []
    for _ in range(12):
        curve = [rng.random() for _ in range(4)]
        trial, stopped = study.ask(), False
        for step, loss in enumerate(curve, start=1):
            trial.report(loss, step=step)
            pruned = trial.should_prune()
            rivals = [c[step - 1] for c in complete]
            verdict = Median(startup=startup).judge(at(loss, rivals, curve[: step - 1]))
            assert verdict == ("stop" if pruned else "go"), (step, curve, complete)
            stopped = stopped or pruned
        if stopped:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, curve[-1])
            complete.append(curve)


@pytest.mark.parametrize(
    ("loss", "rivals", "verdict"),
    [
        (1.1, [1.0, 2.0], "go"),
        (1.2, [1.0, 2.0], "stop"),
        (1.0, [1.1], "go"),
        (-0.9, [-1.0], "go"),
        (-0.8, [-1.0], "stop"),
        (math.inf, [1.0], "stop"),
        (math.inf, [], "stop"),
    ],
)
def test_behind_stops_what_is_far_from_the_best(
    loss: float, rivals: list[float], verdict: str
) -> None:
    assert Behind(margin=0.15).judge(at(loss, rivals)) == verdict


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("patience", [0, 1, 2])
def test_plateau_stops_whom_optuna_prunes(seed: int, patience: int) -> None:
    """Without `min_delta`: Optuna's is how much worse a trial may become, ours how much better it
    must."""
    rng = random.Random(seed)
    pruner = optuna.pruners.PatientPruner(None, patience=patience)
    trial = optuna.create_study(pruner=pruner).ask()
    curve: list[float] = []
    for step in range(10):
        loss = round(rng.random(), 1)
        trial.report(loss, step=step)
        verdict = Plateau(patience=patience).judge(at(loss, [], curve))
        curve.append(loss)
        assert verdict == ("stop" if trial.should_prune() else "go"), curve


@pytest.mark.parametrize("loss", [0.5, 1.0, 1.5, math.inf])
def test_threshold_stops_whom_optuna_prunes(loss: float) -> None:
    """Optuna takes NaN where ours takes infinity, which is what NaN becomes."""
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0)).ask()
    trial.report(loss if math.isfinite(loss) else math.nan, step=1)
    verdict = Threshold(bound=1.0).judge(at(loss, []))
    assert verdict == ("stop" if trial.should_prune() else "go")


@pytest.mark.parametrize(("eta", "total"), [(3, 9), (2, 8), (3, 27)])
def test_hyperbands_brackets_have_the_rungs_of_optunas(eta: int, total: int) -> None:
    """Optuna gives more trials to the brackets that stop early, by a hash of the trial's number;
    ours go round, so that a resumed search needs no name."""
    pruner = optuna.pruners.HyperbandPruner(1, total, reduction_factor=eta)
    study = optuna.create_study(pruner=pruner)
    trial = study.ask()
    trial.report(1.0, step=1)
    trial.should_prune()  # makes its brackets
    theirs = pruner._pruners
    rule = Hyperband(eta=eta, first_rung=1, brackets=len(theirs))
    for bracket, inner in enumerate(theirs):
        first = inner._min_resource * eta**inner._min_early_stopping_rate  # type: ignore[operator]
        assert rule.rungs(total, bracket)[0] == min(first, total)


def test_hyperband_without_a_first_rung_ends_in_a_bracket_that_stops_nobody() -> None:
    rule = Hyperband(eta=3, brackets=3)
    assert [rule.rungs(90, b) for b in range(3)] == [(10, 30, 90), (30, 90), (90,)]


def test_top_k_lets_all_wait_and_k_go_on() -> None:
    rule = TopK(keep=2, first_rung=4)
    assert rule.rungs(20) == (4, 20) and rule.rungs(4) == (4,)
    assert {rule.judge(standing(p, 5)) for p in range(5)} == {"wait"}
    final = [rule.judge(standing(p, 5, final=True)) for p in range(5)]
    assert final == ["go", "go", "stop", "stop", "stop"]


@pytest.mark.parametrize(
    ("loss", "curve", "verdict"),
    [
        (1.9, [1.0], "go"),
        (2.1, [1.0], "stop"),
        (2.1, [3.0], "go"),
        (math.inf, [], "stop"),
        (-0.5, [-0.9], "go"),
        (0.1, [-0.9], "stop" if 0.1 > -0.9 + 0.9 else "go"),
    ],
)
def test_divergence_is_measured_by_the_trials_own_best(
    loss: float, curve: list[float], verdict: str
) -> None:
    assert Divergence(factor=2.0).judge(at(loss, [], curve)) == verdict


def test_rules_together_each_judge_at_their_own_rungs() -> None:
    both = AllOf([Halving(2, 4), Threshold(every=3, bound=1.0)])
    assert both.rungs(10) == (3, 4, 6, 8, 9, 10) and both.crowns

    def judged(step: int, loss: float, *, final: bool = False) -> str:
        return both.judge(Standing(step, 0, [loss], final, 10))

    assert [judged(3, 0.5), judged(3, 2.0)] == ["go", "stop"]
    assert [judged(4, 2.0), judged(4, 2.0, final=True)] == ["wait", "go"], "4 is not the other's"


@pytest.mark.parametrize(("loss", "verdict"), [(0.95, "stop"), (0.89, "go")])
def test_an_improvement_that_is_too_small_is_none(loss: float, verdict: str) -> None:
    assert Plateau(patience=0, min_delta=0.1).judge(at(loss, [], [1.0])) == verdict
