"""States of sweeps as journals give them, without running anything."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from local_sweeps import make_experiment

from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import DONE, FAILED, LOST, PENDING, RUNNING, Decision, SweepState
from crucible_tinkex.registry.registry import _plain
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.stopping import Halving
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.sweep.results.leaderboard import Objective


class Journal:
    """A state, and the policy that reads it; sessions are played by the test."""

    def __init__(self, *, halving: bool = False, **changes: Any) -> None:
        self.state = SweepState()
        self.metric = "eval/nll"
        self.ask(halving=halving, **changes)
        self._tell("created", meta={"experiment": self.experiment.model_dump(mode="json")}, v=2)
        self._tell("run", run="run-1")

    experiment: Experiment

    def ask(self, *, halving: bool = False, **changes: Any) -> None:
        """From now on the sweep is asked for this."""
        changes.setdefault("search", {}).setdefault("reference", False)
        self.experiment = make_experiment(**changes)
        self.halving = halving
        self.policy = self.fresh_policy()

    def fresh_policy(self) -> Policy:
        planner = Planner(self.experiment, rows=20, fingerprint="f")
        asker = trials_of(planner, configurations(self.experiment))
        rule = Halving(2, 2) if self.halving else stopping_rule(self.experiment.search)
        return Policy(planner, asker, rule, objective=Objective.asked(self.experiment))

    def _tell(self, kind: str, **fields: Any) -> None:
        self.state.apply({"type": kind, "time": 0.0, "epoch": 1, **fields})

    def begin_run(self, run_id: str) -> None:
        self._tell("run", run=run_id)

    def write(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._tell("decision", decision=copy.deepcopy(_plain(decision)))

    def decide(self, *, slots: int = 3, answering: tuple[str, ...] = ()) -> list[Decision]:
        """Decide, see that a fresh policy decides the same, and journal it."""
        found = self.policy.decide(self.state, slots=slots, answering=answering)
        again = self.fresh_policy().decide(copy.deepcopy(self.state), slots=slots)
        assert answering or found == again, "the policy remembers something the state has not"
        self.write(found)
        return found

    def train(self, trial_id: str, loss: float, **more: float) -> None:
        """The trial reaches its rung."""
        trial = self.state.trials[trial_id]
        if trial.state != RUNNING:
            self._tell("attempt", trial_id=trial_id, attempt=trial.attempt + 1)
        metrics: Mapping[str, float] = {"eval/nll": loss, **more}
        self._tell("result", trial_id=trial_id, step=trial.target, metrics=metrics)
        if trial.target == trial.total_steps:
            self.finish(trial_id, DONE)

    def save(self, trial_id: str, step: int) -> None:
        trial = self.state.trials[trial_id]
        path = f"tinker://m/weights/{trial_id}-{step}"
        found = {"trial_id": trial_id, "attempt": trial.attempt, "step": step, "path": path}
        self._tell("checkpoint", checkpoint=found)

    def finish(self, trial_id: str, state: str, error: str | None = None) -> None:
        self._tell("finished", trial_id=trial_id, state=state, error=error)

    def live(self, loss: Callable[[Mapping[str, Any]], float], *, slots: int) -> None:
        """To the end of the sweep, of which `loss` of a trial's values is measured; some trials
        fail, are lost, diverge, and end in another order than they began."""
        turn = 0
        while not self.state.ended:
            while self.decide(slots=slots):
                pass
            pending = self.pending
            if not pending:
                assert self.state.ended
                break
            turn += 1
            trial_id = pending[turn * 7 % len(pending)]
            if turn % 11 == 3:
                self.finish(trial_id, FAILED, "bad")
            elif turn % 13 == 5:
                self.finish(trial_id, LOST, "gone")
            else:
                value = loss(self.state.trials[trial_id].values)
                self.train(trial_id, math.nan if turn % 17 == 0 else value)

    @property
    def pending(self) -> list[str]:
        return [
            t.trial_id
            for t in self.state.open.values()
            if t.state in (PENDING, RUNNING) and not t.parked
        ]
