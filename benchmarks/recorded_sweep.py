"""A sweep whose sessions are recorded curves: the sweep's own policy decides, a ledger trains.

What a user's controller does with one slot, without files and clocks: every decision is folded into
the state of a journal, and a trial that trains has at once the result that was recorded. So what a
replay measures is what a sweep does.

A replay's orders differ in the search's seed alone, so what a configuration means is worked out
once for all of them (`Recorded`, `RecordedPlanner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import PrivateAttr

from benchmarks.recorded_grid import Ledger, Surface
from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import DONE, RUNNING, SEARCH, Decision, SweepState, TrialRecord
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.strategies import configurations, learns
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.training.plan import TrialPlan

Plans: TypeAlias = dict[object, TrialPlan]
SLOTS = 1
"""Sessions at the same time: tokens do not become fewer by more, and what is learnt comes later."""


class Recorded(Experiment):
    """Remembers how it is configured; also its copies do."""

    _known: dict[object, Experiment] = PrivateAttr(default_factory=dict)

    def configured(self, values: Mapping[str, Any]) -> Experiment:
        key = tuple(values.items())
        if key not in self._known:
            self._known[key] = super().configured(values)
        return self._known[key]


class RecordedPlanner(Planner):
    """Remembers its plans. No trial of a replay is forked or has a phase of its own."""

    def __init__(self, experiment: Experiment, surface: Surface, known: Plans) -> None:
        super().__init__(experiment, rows=surface.total, fingerprint="recorded")
        self._known = known

    def plan(
        self, values: Mapping[str, Any], seed: int, *, index: int = 0, **other: Any
    ) -> TrialPlan:
        key = tuple(values.items()), seed, index
        if other.get("reference") or other.get("origin") or other.get("phase", SEARCH) != SEARCH:
            return super().plan(values, seed, index=index, **other)
        if key not in self._known:
            self._known[key] = super().plan(values, seed, index=index)
        return self._known[key]


def declared(surface: Surface, search: Mapping[str, Any]) -> Experiment:
    """A sweep over the points of a surface."""
    return Recorded.build(
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
    plans: Plans | None = None,
) -> SweepState:
    """Run the sweep to its end, or until `enough`; what it spends is the ledger's. `seed`: of the
    search. `plans`: kept for the next order of the same experiment."""
    search = experiment.search.model_copy(update={"seed": seed})
    experiment = experiment.model_copy(update={"search": search})
    planner = RecordedPlanner(experiment, ledger.surface, {} if plans is None else plans)
    policy = Policy(
        planner,
        trials_of(planner, [] if learns(experiment) else configurations(experiment)),
        stopping_rule(search),
        metric=search.metric,
        sign=1.0,
    )
    state = SweepState()
    _tell(state, "created", meta={}, v=2)
    _tell(state, "run", run="replay")
    places = {_key(point): i for i, point in enumerate(ledger.surface.points)}
    while state.ended is None and not enough():
        while decisions := policy.decide(state, slots=SLOTS):
            for decision in decisions:
                _tell(state, "decision", decision=_plain(decision))
        waiting = (t for t in state.active.values() if t.is_waiting)
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
    return dict(vars(decision))


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(values.values())
