"""What a sweep does next: a pure function of what its journal says.

`decide` looks at the folded state and the number of slots, and answers with decisions, each with
its reason. It keeps nothing between calls that it could not find again in the state, so a sweep
that is resumed decides the same again, and every choice can be explained from the journal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TypeAlias

from crucible_tinkex.registry import (
    CONFIRM,
    DONE,
    FAIL_FAST,
    FAILED,
    LOST,
    PAUSED,
    PERSON,
    SEARCH,
    Decision,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.registry.records import DecisionKind, declared
from crucible_tinkex.search.stopping import StoppingRule, Verdict
from crucible_tinkex.sweep.deciding.budget import BUDGET, Budget
from crucible_tinkex.sweep.deciding.crowning import to_compare, to_complete
from crucible_tinkex.sweep.deciding.failing import failing
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.proposing.asking import Asker
from crucible_tinkex.sweep.deciding.proposing.confirming import (
    affordable,
    begins,
    first_spent,
    next_confirmations,
    planned_confirmations,
)
from crucible_tinkex.sweep.deciding.proposing.population import replacements
from crucible_tinkex.sweep.deciding.rungs import Rung
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.training.plan import TrialPlan

_Judged: TypeAlias = tuple[TrialRecord, Verdict, str]
"""A trial at a rung, what becomes of it, and the reason."""


class Policy:
    """`resume` once per run, then `decide` after every event."""

    def __init__(
        self,
        planner: Planner,
        asker: Asker,
        rule: StoppingRule,
        *,
        objective: Objective,
        budget: Budget | None = None,
    ) -> None:
        self._planner = planner
        self._asker = asker
        self._rule = rule
        self._objective = objective
        self.budget = budget or Budget()
        self._state: SweepState | None = None
        self._rungs: dict[tuple[int, int], Rung] = {}

    @property
    def is_slow(self) -> bool:
        """Whether `decide` may take up to a second, and should not hold up an event loop."""
        return self._asker.is_slow

    @property
    def planned(self) -> int:
        search = self._planner.experiment.search
        return self._asker.planned + planned_confirmations(search, self._asker.planned)

    def resume(
        self,
        state: SweepState,
        *,
        retry: Collection[str] = (),
        answering: Collection[str] = (),
    ) -> list[Decision]:
        """What a new run takes up again: trials that were lost, those that failed and are in
        `retry`, those that somebody paused, and those that are now asked for another number of
        steps, whether they are done or on their way."""
        if self.budget.reached(state, 0.0):
            return []
        trials = [t for t in state.trials.values() if t.trial_id not in answering]
        return [d for t in trials for d in self._taken_up(t, retry)]

    def amended(self, state: SweepState, *, answering: Collection[str] = ()) -> list[Decision]:
        """What an amendment of a running sweep takes up: as a new run does, but what a person
        paused waits for that person."""
        held = {t.trial_id for t in state.trials.values() if t.hold == PERSON}
        return self.resume(state, answering=held.union(answering))

    def further(self, trial: TrialRecord) -> list[Decision]:
        """A trial is done. If it was asked to go further while it trained, it does."""
        return list(self._taken_up(trial, ()))

    def unpaused(self, trial: TrialRecord, reason: str) -> Decision:
        """To the rung that it was on its way to, of the steps that are asked for now."""
        goal = self._planner.of(trial).total_steps
        return Decision("advance", trial.trial_id, min(trial.target, goal), goal, reason)

    def _taken_up(self, trial: TrialRecord, retry: Collection[str]) -> Iterator[Decision]:
        if trial.state == FAILED and trial.trial_id in retry:
            yield Decision("retry", trial.trial_id, reason="a person asked to try it again")
        elif trial.state == LOST:
            yield Decision("retry", trial.trial_id, reason="a new run tries what was lost again")
        if trial.state == PAUSED and trial.hold:
            reason = f"it was paused by {_WHO[trial.hold]}, and a new run goes on"
            yield self.unpaused(trial, reason)
            return
        if trial.reference or not (trial.state in (DONE, LOST) or trial.is_waiting):
            return
        goal = self._planner.of(trial).total_steps
        if trial.state == DONE:
            self._planner.forget(trial.trial_id)
        if goal > trial.step if trial.state == DONE else goal != trial.total_steps:
            yield self._advance(trial, trial.step, goal, f"asked for {goal} steps now")

    def decide(
        self,
        state: SweepState,
        *,
        slots: int,
        answering: Collection[str] = (),
        wall_s: float = 0.0,
    ) -> list[Decision]:
        """`slots`: sessions that may be open at the same time. `answering`: trials whose sessions
        are in the middle of something; only a budget decides on them. `wall_s`: seconds of this
        run so far."""
        if why := self.budget.reached(state, wall_s):
            return list(self._given_up(state, why, BUDGET))
        if why := failing(state, self._planner.experiment.run):
            return list(self._given_up(state, why, FAIL_FAST))
        if overdrawn := list(self._overdrawn(state)):
            return overdrawn
        if state.held:
            return []
        free = slots - len(state.active)  # below 0: some that were promoted wait for a slot
        left = self.budget.trials_left(state)
        more = self._asker.more(state)
        if more and left == 0:
            if not state.open:
                return self._end_by_budget(state, f"budget.trials: {len(state.trials)} are started")
            more = False
        judged = [
            decision
            for bracket in range(self._rule.brackets)
            for decision in self._judged(bracket, state, answering, more=more, free=free)
        ]
        room = free + sum(_room(state.trials.get(d.trial_id), d) for d in judged)
        room = room if left is None else min(room, left)
        started = [self._start(p) for p in self._asker.ask(state, max(0, room))]
        is_over = left == 0 or not self._asker.more(state)
        return judged + started or (
            list(self._last(state, free, answering, wall_s)) if is_over else []
        )

    def _given_up(self, state: SweepState, why: str, by: str) -> Iterator[Decision]:
        """Have what trains save and wait, then end; a later run takes it up again."""
        for trial in state.active.values():
            yield Decision("pause", trial.trial_id, reason=why, by=by)
        if not state.active and state.ended is None:
            yield Decision("end", reason=why, by=by)

    def _overdrawn(self, state: SweepState) -> Iterator[Decision]:
        if self.budget.capped:
            for trial in state.active.values():
                if why := self.budget.reached_by(trial):
                    yield Decision("stop", trial.trial_id, reason=why, by=BUDGET)

    def _end_by_budget(self, state: SweepState, why: str) -> list[Decision]:
        return [Decision("end", reason=why, by=BUDGET)] if state.ended is None else []

    def _last(
        self, state: SweepState, free: int, answering: Collection[str], wall_s: float
    ) -> Iterator[Decision]:
        """When the search has nothing more to ask for or to judge: see that somebody was trained to
        the end, then confirm the leaders, then end."""
        if state.ended is not None or any(t.phase == SEARCH for t in state.open.values()):
            return
        crowns = self._rule.crowns and not state.open
        by_trial = self._rule.replaces
        if crowns and (again := to_complete(state, self.budget, by_trial=by_trial)):
            for trial in again[: max(1, free)]:
                if trial.trial_id not in answering:
                    goal = self._planner.of(trial).total_steps
                    begun = max(trial.target, trial.step)
                    yield self._advance(trial, begun, goal, _INCOMPLETE)
            return
        if misled := self._again(state):
            for trial in misled[: max(1, free)] if not state.open else ():
                if trial.trial_id not in answering:
                    goal = self._planner.of(trial).total_steps
                    yield self._advance(trial, trial.target, goal, _MISLED)
            return
        search = self._planner.experiment.search
        if not state.open and begins(state, search):
            by_trial = self._rule.replaces or not self._rule.crowns
            rivals = to_compare(state, search, self.budget, by_trial=by_trial)
            if rivals:
                least = first_spent(state, search, rivals=len(rivals))
                trials = len(least) - len(rivals)
                why = self.budget.short_of(state, least, trials=trials, at_once=free, wall_s=wall_s)
                if why:
                    yield from self._end_by_budget(state, f"{why}: {_TOO_LITTLE}")
                    return
                for trial in rivals[: max(1, free)]:
                    goal = self._planner.of(trial).total_steps
                    yield self._advance(trial, max(trial.target, trial.step), goal, _RIVAL)
                return
        if free <= 0 and state.open:
            return
        found = next_confirmations(state, self._planner)
        at_once = free + len(state.active)
        plans, why = affordable(
            state, found.plans, search, self.budget, at_once=at_once, wall_s=wall_s
        )
        if found.plans and not plans and not state.open:
            yield from self._end_by_budget(state, f"{why}: {_TOO_LITTLE}")
            return
        first = len(state.trials)
        for i, plan in enumerate(plans[: max(0, free)]):
            numbered = self._planner.plan(plan.values, plan.seed, index=first + i, phase=plan.phase)
            yield self._begin("confirm", numbered, found.reason)
        if not plans and not state.open:
            yield Decision("end", reason=found.ends)

    def _again(self, state: SweepState) -> list[TrialRecord]:
        """Before the confirmation; nobody where spending is capped: it is planned without them."""
        if self.budget.capped or any(t.phase == CONFIRM for t in state.trials.values()):
            return []
        return self._asker.again(state)

    def _start(self, plan: TrialPlan) -> Decision:
        return self._begin("start", plan, self._asker.why(plan))

    def fork(self, plan: TrialPlan) -> Decision:
        """A clone of another trial; it waits for a slot like one that was promoted."""
        assert plan.origin
        where = f"from its step {plan.origin.step}" if plan.origin.warm else "from the base"
        return self._begin("fork", plan, f"a clone of trial {plan.origin.parent}, {where}")

    def _begin(self, kind: DecisionKind, plan: TrialPlan, reason: str) -> Decision:
        goal, begun = plan.total_steps, plan.origin.step if plan.origin else 0
        rungs = (goal,) if kind == "confirm" else self._rule.rungs(goal, self._bracket(plan.index))
        return Decision(
            kind,
            plan.trial_id,
            to_step=next((r for r in rungs if r > begun), goal),
            total_steps=goal,
            reason=reason,
            trial=declared(plan),
        )

    def _advance(self, trial: TrialRecord, step: int, goal: int, reason: str) -> Decision:
        rungs = self._rule.rungs(goal, self._bracket(trial.index))
        rung = next((r for r in rungs if r > step), goal)
        return Decision("advance", trial.trial_id, rung, goal, reason)

    # --- rungs --------------------------------------------------------------------------------

    def _bracket(self, index: int) -> int:
        return index % self._rule.brackets

    def _judged(
        self,
        bracket: int,
        state: SweepState,
        answering: Collection[str],
        *,
        more: bool,
        free: int,
    ) -> Iterator[Decision]:
        """Decisions on the trials that stand at a rung; one that must wait keeps its slot unless
        another trial needs it, and where none is `free` the best of those that may go on go first.
        A rung is final, so that its best goes on whatever its share, once nobody can come to it any
        more."""
        crowded = more or free < 0
        standing: dict[int, list[TrialRecord]] = {}
        mine = [t for t in state.active.values() if self._bracket(t.index) == bracket]
        answers = (state.open[i] for i in answering if i in state.open)
        climbing = [t.target for t in answers if self._bracket(t.index) == bracket]
        for trial in mine:
            if trial.parked and trial.trial_id not in answering:
                standing.setdefault(trial.target, []).append(trial)
            else:
                climbing.append(trial.target)
        lowest = min(climbing, default=math.inf)
        for step in sorted({*standing, *state.paused}):
            rung = self._rung(state, step, bracket)
            final = not more and lowest > step
            parked = [(t, *self._verdict(rung, t, final=final)) for t in standing.get(step, ())]
            paused = self._paused(state, rung, answering, final=final)
            if parked or paused:
                lowest = min(lowest, step)
            have = [t for t, verdict, _ in parked if verdict == "go"]
            have_not = [t for t, verdict, _ in paused if verdict == "go"]
            promises = {t.trial_id: self._asker.promise(state, t) for t in (*have, *have_not)}
            later = rung.later(state, have, have_not, promises, free=free)
            for trial, verdict, reason in parked:
                if trial.trial_id in later or (verdict == "wait" and crowded):
                    reason += ": those before it go first" if trial.trial_id in later else ""
                    yield Decision("pause", trial.trial_id, reason=reason)
                elif verdict != "wait":
                    yield from self._judgement(state, rung, trial, verdict, reason)
            for trial, verdict, reason in paused:
                if verdict != "wait" and trial.trial_id not in later:
                    yield from self._judgement(state, rung, trial, verdict, reason)

    def _paused(
        self, state: SweepState, rung: Rung, answering: Collection[str], *, final: bool
    ) -> list[_Judged]:
        """Verdicts on those that are paused at a rung, up to the first that must wait: no other is
        better than that one."""
        taken: dict[str, TrialRecord] = {}
        judged: list[_Judged] = []
        while trial := rung.take_paused(state):
            is_known = trial.trial_id in taken or trial.trial_id in answering
            taken[trial.trial_id] = trial
            if is_known:
                continue
            verdict, reason = self._verdict(rung, trial, final=final)
            judged.append((trial, verdict, reason))
            if verdict == "wait":
                break
        for left in taken.values():
            rung.give_back(left)
        return judged

    def _verdict(self, rung: Rung, trial: TrialRecord, *, final: bool) -> tuple[Verdict, str]:
        standing = rung.standing(trial, final=final)
        place = f"place {standing.place + 1} of {len(rung)}"
        reason = f"{place} by {self._objective.metric} at step {trial.target}"
        return self._rule.judge(standing), reason

    def _judgement(
        self, state: SweepState, rung: Rung, trial: TrialRecord, verdict: Verdict, reason: str
    ) -> Iterator[Decision]:
        follower = self._follower(state, rung, trial) if verdict == "stop" else None
        if verdict == "stop" and (follower or not self._rule.replaces):
            yield Decision("stop", trial.trial_id, reason=reason)
        else:
            goal = self._planner.of(trial).total_steps
            yield self._advance(trial, trial.target, goal, reason)
        if follower:
            yield self.fork(follower)

    def _follower(self, state: SweepState, rung: Rung, trial: TrialRecord) -> TrialPlan | None:
        """What takes the place of one that is stopped, where the rule wants that and a cap on
        trials lets it."""
        if not self._rule.replaces:
            return None
        found = replacements(state, self._planner, rung.ranked(state), trial.target)
        left = self.budget.trials_left(state)
        return dict(list(found.items())[:left]).get(trial.trial_id)

    def _rung(self, state: SweepState, step: int, bracket: int) -> Rung:
        if state is not self._state:
            self._state, self._rungs = state, {}
        key = step, bracket
        if key not in self._rungs:
            of = {"bracket": bracket, "brackets": self._rule.brackets}
            self._rungs[key] = Rung(step, self._objective, **of)
        self._rungs[key].read(state)
        return self._rungs[key]


_INCOMPLETE = (
    "no configuration was trained to the end, and this is the best of those that were stopped"
)
_MISLED = "a neighbour of the best that ended; the rung that stopped it may have misled"
_RIVAL = "the leader cannot be confirmed alone, and this is the best of those that were stopped"
_TOO_LITTLE = "the rest does not pay for another fresh seed of the leaders"
_WHO = {PERSON: "a person", BUDGET: "a budget", FAIL_FAST: "run.fail_fast"}


def _room(trial: TrialRecord | None, decision: Decision) -> int:
    """How many slots a decision on a trial that stands at a rung sets free; a clone, which is none
    yet, takes one."""
    if trial is None:
        return -1
    if decision.kind == "advance":
        return -1 if trial.state == PAUSED else 0
    return 0 if trial.state == PAUSED else 1
