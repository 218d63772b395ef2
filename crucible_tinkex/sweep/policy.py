"""What a sweep does next: a pure function of what its journal says.

`decide` looks at the folded state and the number of slots, and answers with decisions, each with
its reason. It keeps nothing between calls that it could not find again in the state, so a sweep
that is resumed decides the same again, and every choice can be explained from the journal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

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
from crucible_tinkex.search.stopping import StoppingRule, Verdict
from crucible_tinkex.sweep.asking import Asker
from crucible_tinkex.sweep.planner import Planner
from crucible_tinkex.sweep.rungs import Rung
from crucible_tinkex.training.plan import TrialPlan


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
        self._state: SweepState | None = None
        self._rungs: dict[int, Rung] = {}

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
        free = slots - len(state.active)  # below 0: some that were promoted wait for a slot
        more = self._asker.more(state)
        crowded = more or free < 0
        judged = list(self._judged(state, answering, more=more, crowded=crowded))
        room = free + sum(_room(state.trials[d.trial_id], d) for d in judged)
        started = [self._start(p) for p in self._asker.ask(state, max(0, room))]
        decisions = judged + started
        is_over = not state.open and not self._asker.more(state)
        if not decisions and is_over and state.ended is None:
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
        another trial needs it (`crowded`). A rung is final, so that its best goes on whatever its
        share, once nobody can come to it any more."""
        standing: dict[int, list[TrialRecord]] = {}
        climbing = [state.open[i].target for i in answering if i in state.open]
        for trial in state.active.values():
            if trial.parked and trial.trial_id not in answering:
                standing.setdefault(trial.target, []).append(trial)
            else:
                climbing.append(trial.target)
        lowest = min(climbing, default=math.inf)
        for step in sorted({*standing, *state.paused}):
            rung = self._rung(state, step)
            final = not more and lowest > step
            for trial in standing.get(step, ()):
                lowest = min(lowest, step)
                verdict, reason = self._verdict(rung, trial, final=final)
                if verdict == "wait" and crowded:
                    yield Decision("pause", trial.trial_id, reason=reason)
                elif verdict != "wait":
                    yield self._judgement(trial, verdict, reason)
            for trial, verdict, reason in self._paused(state, rung, answering, final=final):
                lowest = min(lowest, step)
                if verdict != "wait":
                    yield self._judgement(trial, verdict, reason)

    def _paused(
        self, state: SweepState, rung: Rung, answering: Collection[str], *, final: bool
    ) -> list[tuple[TrialRecord, Verdict, str]]:
        """Verdicts on those that are paused at a rung, up to the first that must wait: no other is
        better than that one."""
        taken: dict[str, TrialRecord] = {}
        judged: list[tuple[TrialRecord, Verdict, str]] = []
        while trial := rung.take_paused(state):
            if trial.trial_id in taken or trial.trial_id in answering:
                taken[trial.trial_id] = trial
                continue
            taken[trial.trial_id] = trial
            verdict, reason = self._verdict(rung, trial, final=final)
            judged.append((trial, verdict, reason))
            if verdict == "wait":
                break
        for left in taken.values():
            rung.give_back(left)
        return judged

    def _verdict(self, rung: Rung, trial: TrialRecord, *, final: bool) -> tuple[Verdict, str]:
        place, of = rung.place(trial), len(rung)
        reason = f"place {place + 1} of {of} by {self._metric} at step {trial.target}"
        return self._rule.judge(place, of, final=final), reason

    def _judgement(self, trial: TrialRecord, verdict: Verdict, reason: str) -> Decision:
        if verdict == "stop":
            return Decision("stop", trial.trial_id, reason=reason)
        goal = self._planner.of(trial).total_steps
        return self._advance(trial, trial.target, goal, reason)

    def _rung(self, state: SweepState, step: int) -> Rung:
        if state is not self._state:
            self._state, self._rungs = state, {}
        if step not in self._rungs:
            self._rungs[step] = Rung(step, metric=self._metric, sign=self._sign)
        self._rungs[step].read(state)
        return self._rungs[step]


def _room(trial: TrialRecord, decision: Decision) -> int:
    """How many slots a decision on a trial that stands at a rung sets free."""
    if decision.kind == "advance":
        return -1 if trial.state == PAUSED else 0
    return 0 if trial.state == PAUSED else 1


def is_waiting(trial: TrialRecord) -> bool:
    """Whether the trial should train now: it has a rung to reach and has not ended."""
    return trial.state in (PENDING, RUNNING) and not trial.parked
