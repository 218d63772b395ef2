"""A sweep whose sessions are played: its own policy decides, the caller says what is measured.

What a user's controller does, without files, clocks and services: every decision is folded into the
state of a journal, and a trial that trains has its result at once. So what is counted over a
thousand of these is what sweeps do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import DONE, RUNNING, Decision, SweepState, TrialRecord
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.sweep.results.batches import ASKED
from crucible_tinkex.sweep.results.leaderboard import Objective

ROWS = 100


def planner_of(experiment: Experiment) -> Planner:
    return Planner(experiment, rows=ROWS, fingerprint="played")


class PlayedSweep:
    """One sweep over as many amendments as wanted. `loss(trial, step)` is measured at a rung."""

    def __init__(
        self,
        experiment: Experiment,
        loss: Callable[[TrialRecord, int], float],
        *,
        slots: int,
        planner: Callable[[Experiment], Planner] = planner_of,
    ) -> None:
        self.state = SweepState()
        self._experiment = experiment
        self._loss = loss
        self._slots = slots
        self._planner = planner
        self._tell("created", meta=self._prepared(experiment), v=2)
        self._tell("run", run="run-1")

    def amend(self, experiment: Experiment) -> None:
        """From now on this is asked."""
        changed = experiment.amendments(self._experiment)
        self._experiment = experiment
        self._tell("amended", meta=self._prepared(experiment), changed=list(changed))
        self._tell("run", run=f"run-{len(self.state.amendments) + 1}")
        self._write(self._policy.resume(self.state))

    def run(self) -> Iterator[SweepState]:
        """To its end; the state after every round of sessions."""
        while self.state.ended is None:
            decisions = self._policy.decide(self.state, slots=self._slots)
            self._write(decisions)
            waiting = (t for t in self.state.active.values() if t.is_waiting)
            training = list(islice(waiting, self._slots))  # as the pool: in order of submission
            for trial in training:
                self._train(trial)
            if training:
                yield self.state
            elif not decisions:
                raise RuntimeError("the sweep stands still")

    def _prepared(self, experiment: Experiment) -> dict[str, Any]:
        planner = self._planner(experiment)
        listed = configurations(experiment)
        self._policy = Policy(
            planner,
            trials_of(planner, listed),
            stopping_rule(experiment.search),
            objective=Objective.asked(experiment),
        )
        return {"experiment": experiment.model_dump(mode="json"), ASKED: len(listed)}

    def _write(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            self._tell("decision", decision=vars(decision))

    def _train(self, trial: TrialRecord) -> None:
        if trial.state != RUNNING:
            self._tell("attempt", trial_id=trial.trial_id, attempt=trial.attempt + 1)
        metrics = {self._experiment.search.metric: self._loss(trial, trial.target)}
        self._tell("result", trial_id=trial.trial_id, step=trial.target, metrics=metrics)
        if trial.target == trial.total_steps:
            self._tell("finished", trial_id=trial.trial_id, state=DONE, error=None)

    def _tell(self, kind: str, **fields: Any) -> None:
        self.state.apply({"type": kind, "time": 0.0, "epoch": 1, **fields})
