"""What a command means: a pure function of the state and the command to decisions and an answer."""

from __future__ import annotations

from collections.abc import Sequence

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import FAILED, LOST, PAUSED, PERSON, TERMINAL, Decision, SweepState
from crucible_tinkex.registry import TrialRecord as Trial
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.orders.cloning import clone_plan
from crucible_tinkex.sweep.orders.control import Command


def obey(
    state: SweepState, policy: Policy, planner: Planner, command: Command
) -> tuple[list[Decision], str]:
    """Decisions and what is answered. Asking for what is so already decides nothing. Raises
    `ConfigError` for what cannot be, and then nothing is decided."""
    trials = state.named(command.trials)
    if command.kind == "clone":
        return _clone(state, policy, planner, command, trials)
    if command.kind == "retry":
        return _told("retry", _retry(failed_trials(state, command.trials)))
    if command.kind == "stop":
        # without trials the controller drains its run: they may go on with the next one
        return (
            _told("stop", _stop(trials)) if trials else ([], "stop: the sweep; it can be resumed")
        )
    if command.kind == "pause":
        return _told("pause", _pause(trials or _open(state)), whole=not trials)
    if command.kind == "unpause":
        return _told("unpause", _unpause(trials or _open(state), policy), whole=not trials)
    raise ConfigError(f"{command.kind} is nothing that a policy decides")


def extended_answer(changed: Sequence[str], reached: str | None) -> str:
    """What is answered to `extend`; `reached`: the cap that is used up even so."""
    told = f"extend: {', '.join(changed)}"
    return f"{told}; nothing is trained with that: {reached}" if reached else told


def failed_trials(state: SweepState, names: Sequence[str] = ()) -> list[Trial]:
    """The trials that failed or were lost: all of them, or those of `names`. Raises `ConfigError`
    for one that is not there, or that did not fail."""
    named = state.named(names)
    for trial in named:
        if trial.state not in (FAILED, LOST):
            raise ConfigError(f"trial {trial.run_name} is {trial.state}: it did not fail")
    return named or [t for t in state.trials.values() if t.state in (FAILED, LOST)]


def _open(state: SweepState) -> list[Trial]:
    return list(state.open.values())


_NOTHING = {
    ("stop", False): "they have ended",
    ("pause", False): "they are paused",
    ("unpause", False): "they are not paused",
    ("unpause", True): "nothing is paused",
    ("retry", False): "no trial has failed or was lost",
}
"""What is answered where no decision is needed; by the command, and whether it is on all."""


def _told(
    kind: str, decisions: list[Decision], *, whole: bool = False
) -> tuple[list[Decision], str]:
    count = len(decisions)
    if not count and (why := _NOTHING.get((kind, whole))):
        return [], f"{kind}: nothing to do, {why}"
    trials = f"{count} {'trial' if count == 1 else 'trials'}"
    return decisions, f"{kind}: {'the sweep, ' if whole else ''}{trials}"


def _clone(
    state: SweepState, policy: Policy, planner: Planner, command: Command, trials: list[Trial]
) -> tuple[list[Decision], str]:
    if len(trials) != 1:
        raise ConfigError("clone: name the one trial to clone")
    plan = clone_plan(
        state, planner, trials[0], command.settings, fresh=command.fresh, at=command.at
    )
    if there := state.trials.get(plan.trial_id):
        return [], f"clone: it is there already: {there.run_name}, {there.state}"
    assert plan.origin
    begin = f"step {plan.origin.step} of {trials[0].run_name}" if plan.origin.warm else "the base"
    return [policy.fork(plan)], f"clone: {plan.run_name}, from {begin}"


def _retry(trials: list[Trial]) -> list[Decision]:
    reason = "a person asked to try it again"
    return [Decision("retry", t.trial_id, reason=reason) for t in trials]


def _stop(trials: list[Trial]) -> list[Decision]:
    reason = "a person stopped it"
    return [
        Decision("stop", t.trial_id, reason=reason, by=PERSON)
        for t in trials
        if t.state not in TERMINAL
    ]


def _pause(trials: list[Trial]) -> list[Decision]:
    _refuse_ended(trials, "paused")
    reason = "a person paused it"
    return [Decision("pause", t.trial_id, reason=reason, by=PERSON) for t in trials if not t.hold]


def _unpause(trials: list[Trial], policy: Policy) -> list[Decision]:
    _refuse_ended(trials, "taken up again")
    held = [t for t in trials if t.hold and t.state == PAUSED]
    return [policy.unpaused(trial, "a person let it go on") for trial in held]


def _refuse_ended(trials: list[Trial], what: str) -> None:
    for trial in trials:
        if trial.state in TERMINAL:
            raise ConfigError(f"trial {trial.run_name} is {trial.state} and cannot be {what}")
