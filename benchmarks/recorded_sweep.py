"""A sweep over a recorded surface: its own policy decides, the ledger is what training costs.

It is played (`benchmarks.played`) with one slot, and a trial that trains has the result that was
recorded. So what a replay measures is what a sweep does.

A replay's orders differ in the search's seed alone, so what a configuration means is worked out
once for all of them (`Recorded`, `RecordedPlanner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import PrivateAttr

from benchmarks.played import PlayedSweep
from benchmarks.recorded_grid import Ledger, Surface
from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import SEARCH, SweepState
from crucible_tinkex.sweep.deciding.planner import Planner
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
    surface, known = ledger.surface, {} if plans is None else plans
    search = experiment.search.model_copy(update={"seed": seed})
    sweep = PlayedSweep(
        experiment.model_copy(update={"search": search}),
        lambda trial, step: ledger.train(surface.number(trial.values), step),
        slots=SLOTS,
        planner=lambda one: RecordedPlanner(one, surface, known),
    )
    for _ in sweep.run():
        if enough():
            break
    return sweep.state
