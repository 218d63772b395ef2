"""A sweep whose sessions are recorded curves: the sweep's own policy decides, a ledger trains.

What a user's controller does with one slot, without files and clocks: every decision is folded into
the state of a journal, and a trial that trains has at once the result that was recorded. So what a
replay measures is what a sweep does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.recorded_grid import Ledger, Surface
from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import DONE, RUNNING, Decision, SweepState, TrialRecord
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy, is_waiting
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of

SLOTS = 1
"""Sessions at the same time: tokens do not become fewer by more, and what is learnt comes later."""


def declared(surface: Surface, search: Mapping[str, Any]) -> Experiment:
    """A sweep over the points of a surface."""
    return Experiment.build(
        {
            "name": surface.task,
            "model": {"base": "nano"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "train": {"max_steps": surface.total, "batch_size": 4},
            "search": {
                "space": axes_of(surface),
                "reference": False,
                "confirm": 0,
                **search,
            },
        }
    )


def axes_of(surface: Surface) -> dict[str, list[Any]]:
    keys = list(surface.points[0])
    return {key: list(dict.fromkeys(p[key] for p in surface.points)) for key in keys}


def replay_sweep(
    experiment: Experiment,
    ledger: Ledger,
    *,
    seed: int,
    enough: Callable[[], bool] = lambda: False,
) -> SweepState:
    """Run the sweep to its end, or until `enough`; what it spends is the ledger's. `seed`: of the
    search."""
    search = experiment.search.model_copy(update={"seed": seed})
    experiment = experiment.model_copy(update={"search": search})
    planner = Planner(experiment, rows=ledger.surface.total, fingerprint="recorded")
    policy = Policy(
        planner,
        trials_of(planner, configurations(experiment)),
        stopping_rule(search),
        metric=search.metric,
        sign=1.0,
    )
    state = SweepState()
    _tell(state, "created", meta={"experiment": experiment.model_dump(mode="json")}, v=2)
    _tell(state, "run", run="replay")
    places = {_key(point): i for i, point in enumerate(ledger.surface.points)}
    while state.ended is None and not enough():
        while decisions := policy.decide(state, slots=SLOTS):
            for decision in decisions:
                _tell(state, "decision", decision=_plain(decision))
        waiting = (t for t in state.active.values() if is_waiting(t))
        if (trial := next(waiting, None)) is not None:  # as the pool does: in order of submission
            _train(state, trial, ledger, places[_key(trial.values)])
        elif state.ended is None:
            raise RuntimeError(f"the sweep of {ledger.surface.task} stands still")
    return state


def _train(state: SweepState, trial: TrialRecord, ledger: Ledger, point: int) -> None:
    loss = ledger.train(point, trial.target)
    if trial.state != RUNNING:
        _tell(state, "attempt", trial_id=trial.trial_id, attempt=trial.attempt + 1)
    metrics = {"eval/nll": loss}
    _tell(state, "result", trial_id=trial.trial_id, step=trial.target, metrics=metrics)
    if trial.target == trial.total_steps:
        _tell(state, "finished", trial_id=trial.trial_id, state=DONE, error=None)


def _tell(sweep: SweepState, kind: str, **fields: Any) -> None:
    sweep.apply({"type": kind, "time": 0.0, "epoch": 1, **fields})


def _plain(decision: Decision) -> dict[str, Any]:
    return asdict(decision)


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(values.values())
