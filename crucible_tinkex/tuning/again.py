"""What a call of `tune` changes in the experiment file that an earlier one wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crucible_tinkex.config import BudgetSection, Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.search.auto_settings import CONFIRM
from crucible_tinkex.sweep.preparing.preparation import load_sweep
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.tuning.choices import SHARE, confirmation, searching, trained

CAPS = ("trials", "steps", "tokens", "hours", "dollars")


def news(
    found: Experiment, paths: SweepPaths, asked: Mapping[str, Any], *, has_budget: bool
) -> dict[str, Any]:
    """What the file does not say yet, by dotted key; None takes a key out. `found`: what it says.
    `asked`: what a person says now. A budget among that takes the place of all caps of the old one,
    and a greater one pays for more seeds. Where there is none, what the sweep was given since
    (`crucible extend`) is not taken away again."""
    begun, ours = paths.resolved.exists(), dict[str, Any]()
    if has_budget:
        ours = {f"budget.{cap}": None for cap in CAPS}
        if begun and _is_greater(asked, found.budget):
            ours |= _confirmed(found, read_state(paths), asked)
            ours |= _searched(found, asked)
    elif begun:
        ours = _extended(found.budget, paths)
    return {key: value for key, value in {**ours, **asked}.items() if found.setting(key) != value}


def said_anew(found: Mapping[str, Any]) -> Iterator[str]:
    """`found`: of `news`, in words."""
    said = {key: value for key, value in found.items() if value is not None}
    if said:
        yield f"and the file says now: {', '.join(f'{k} = {v}' for k, v in said.items())}"


def _extended(budget: BudgetSection, paths: SweepPaths) -> dict[str, Any]:
    own = load_sweep(paths.root.parent, paths.root.name).budget
    pairs = ((cap, getattr(budget, cap), getattr(own, cap)) for cap in CAPS)
    return {f"budget.{cap}": b for cap, a, b in pairs if a and b and b > a}


def _is_greater(budget: Mapping[str, Any], old: BudgetSection) -> bool:
    """Also one of another kind."""
    caps = {cap: value for cap in CAPS if (value := budget.get(f"budget.{cap}")) is not None}
    return all(value > (getattr(old, cap) or 0) for cap, value in caps.items())


def _confirmed(found: Experiment, state: SweepState, budget: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds of the leaders, where the budget pays for more than those few that a small one
    pays for: a sweep that is over would have nothing to spend it on. A number that `tune` does not
    choose by itself is somebody's wish."""
    search = found.search
    few = search.confirm in range(1, CONFIRM + 1)
    if not few and search.confirm != "auto":
        return {}
    cost = _trial_cost(found, state)
    pays = [SHARE * budget[key] / each for key, each in cost.items() if key in budget and each]
    pays += [trained(budget["budget.trials"])] if "budget.trials" in budget else []
    asked = dict(confirmation(min(pays, default=None)))
    more = asked and (few or asked["search.confirm_max_seeds"] > search.confirm_max_seeds)
    return asked if more else {}


def _searched(found: Experiment, budget: Mapping[str, Any]) -> dict[str, Any]:
    """Half of a budget of trials, if that is what it was."""
    old, new = found.budget.trials, budget.get("budget.trials")
    if old is None or new is None or found.search.trials != searching(old):
        return {}
    return {"search.trials": searching(new)}


def _trial_cost(found: Experiment, state: SweepState) -> dict[str, float]:
    """Of a whole trial, by kind of budget, as far as is known by what was spent."""
    steps, spent = found.train.max_steps, state.spent
    if not steps or not spent.steps:
        return {}
    each = steps / spent.steps
    return {
        "budget.steps": steps,
        "budget.tokens": each * spent.tokens,
        "budget.hours": each * state.wall_s / 3600,
    }
