"""What a sweep does next: a pure function of what its journal says.

`decide` looks at the folded state and the number of slots, and answers with decisions, each with
its reason. It keeps nothing between calls that it could not find again in the state, so a sweep
that is resumed decides the same again, and every choice can be explained from the journal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from crucible_tinkex.registry import (
    DONE,
    FAILED,
    LOST,
    PAUSED,
    PENDING,
    RUNNING,
    Decision,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.registry.records import declared
from crucible_tinkex.search.stopping import StoppingRule
from crucible_tinkex.sweep.planner import Planner
from crucible_tinkex.training.plan import TrialPlan


class Asker(Protocol):
    """Where new trials come from."""

    @property
    def planned(self) -> int:
        """How many trials there will be in all, or at most."""
        ...

    def ask(self, state: SweepState, count: int) -> list[TrialPlan]: ...

    def is_exhausted(self, state: SweepState) -> bool: ...


class Policy:
    """`resume` once per run, then `decide` after every event."""

    def __init__(
        self, planner: Planner, asker: Asker, rule: StoppingRule, *, metric: str, sign: float
    ) -> None:
        """`sign` is 1 for a metric to minimise, -1 for one to maximise."""
        self._planner = planner
        self._asker = asker
        self._rule = rule
        self._metric = metric
        self._sign = sign

    @property
    def planned(self) -> int:
        return self._asker.planned

    def resume(self, state: SweepState, *, retry: Collection[str] = ()) -> list[Decision]:
        """What a new run takes up again: trials that were lost, those that failed and are in
        `retry`, and those that are now asked for another number of steps, whether they are done
        or on their way."""
        return [d for t in state.trials.values() for d in self._taken_up(t, retry)]

    def _taken_up(self, trial: TrialRecord, retry: Collection[str]) -> Iterator[Decision]:
        if trial.state == FAILED and trial.trial_id in retry:
            yield Decision("retry", trial.trial_id, reason="a person asked to try it again")
        elif trial.state == LOST:
            yield Decision("retry", trial.trial_id, reason="a new run tries what was lost again")
        if trial.reference or not (trial.state in (DONE, LOST) or is_waiting(trial)):
            return
        goal = self._planner.of(trial).total_steps
        if trial.state == DONE:
            self._planner.forget(trial.trial_id)
        if goal > trial.step if trial.state == DONE else goal != trial.total_steps:
            yield self._advance(trial, trial.step, goal, f"asked for {goal} steps now")

    def decide(
        self, state: SweepState, *, slots: int, answering: Collection[str] = ()
    ) -> list[Decision]:
        """`slots`: sessions that may be open at the same time. `answering`: trials whose sessions
        are in the middle of something; nothing is decided on them, whatever the journal has."""
        busy = [t for t in state.open.values() if t.state != PAUSED]
        free = max(0, slots - len(busy))
        new = self._asker.ask(state, free + 1)
        crowded = bool(new) or len(busy) > slots
        judged = list(self._judged(state, answering, more=bool(new), crowded=crowded))
        room = free + sum(_room(state.trials[d.trial_id], d) for d in judged)
        started = [self._start(p) for p in new[: max(0, room)]]
        decisions = judged + started
        if not decisions and not state.open and not new and state.ended is None:
            decisions.append(Decision("end", reason="no trial is left to ask for or to train"))
        return decisions

    def _start(self, plan: TrialPlan) -> Decision:
        return Decision(
            "start",
            plan.trial_id,
            to_step=self._rule.rungs(plan.total_steps)[0],
            total_steps=plan.total_steps,
            reason="the next configuration of the search" if plan.values else "as declared",
            trial=declared(plan),
        )

    def _advance(self, trial: TrialRecord, step: int, goal: int, reason: str) -> Decision:
        rung = next((r for r in self._rule.rungs(goal) if r > step), goal)
        return Decision("advance", trial.trial_id, rung, goal, reason)

    # --- rungs --------------------------------------------------------------------------------

    def _judged(
        self, state: SweepState, answering: Collection[str], *, more: bool, crowded: bool
    ) -> Iterator[Decision]:
        """Decisions on the trials that stand at a rung; one that must wait keeps its slot unless
        another trial needs it (`crowded`)."""
        standing, climbing = [], []
        for trial in state.open.values():
            at_rung = trial.parked or trial.state == PAUSED
            (standing if at_rung and trial.trial_id not in answering else climbing).append(trial)
        tables = {rung: self._losses(state, rung) for rung in {t.target for t in standing}}
        lowest = min((t.target for t in climbing), default=math.inf)
        for trial in standing:
            final = not more and lowest > trial.target and not self._below(standing, trial)
            table = tables[trial.target]
            verdict = self._rule.judge(trial.trial_id, table, final=final)
            reason = self._reason(trial, table)
            if verdict == "go":
                goal = self._planner.of(trial).total_steps
                yield self._advance(trial, trial.target, goal, reason)
            elif verdict == "stop":
                yield Decision("stop", trial.trial_id, reason=reason)
            elif trial.parked and crowded:
                yield Decision("pause", trial.trial_id, reason=reason)

    @staticmethod
    def _below(standing: Sequence[TrialRecord], trial: TrialRecord) -> bool:
        return any(t.target < trial.target for t in standing)

    def _losses(self, state: SweepState, rung: int) -> dict[str, float]:
        """Of every trial measured at the rung; what is not a number is worse than all others."""
        found = {}
        for trial in state.trials.values():
            if rung in trial.results and not trial.reference:
                value = self._sign * trial.results[rung].get(self._metric, math.nan)
                found[trial.trial_id] = math.inf if math.isnan(value) else value
        return found

    def _reason(self, trial: TrialRecord, losses: Mapping[str, float]) -> str:
        place = 1 + sum(loss < losses[trial.trial_id] for loss in losses.values())
        return f"place {place} of {len(losses)} by {self._metric} at step {trial.target}"


def _room(trial: TrialRecord, decision: Decision) -> int:
    """How many slots a decision on a trial that stands at a rung sets free."""
    if decision.kind == "advance":
        return -1 if trial.state == PAUSED else 0
    return 0 if trial.state == PAUSED else 1


def is_waiting(trial: TrialRecord) -> bool:
    """Whether the trial should train now: it has a rung to reach and has not ended."""
    return trial.state in (PENDING, RUNNING) and not trial.parked
