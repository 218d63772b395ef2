"""Strategy `auto` as settings of what there is: guesses of the prior (`enqueue`), a space around
them, a rung at which few go on (`topk`, `behind`), the search of `search.auto`, confirmed leaders.

A pure function of the experiment and of records, asked once, when a sweep begins; its answer is
stored with the sweep, so that sweeps which finish later do not change it. What the experiment gives
is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crucible_tinkex.config import Axis, AxisRange, Experiment, SearchSection, StoppingSection
from crucible_tinkex.search.auto import Recipe, recipe
from crucible_tinkex.search.learned.priors import Prior, Question, suggest
from crucible_tinkex.search.learned.records import RANK, RATE, USUAL_WAY, Record, way_of
from crucible_tinkex.search.neighbourhood import FACTOR
from crucible_tinkex.search.points.space import Space

OPEN = ("space", "trials", "enqueue", "stopping", "confirm", "confirm_top")
"""Of `search`: what is chosen where it is not given."""
RANKS = (4, 8, 16, 32, 64)
RATES = (1e-5, 1e-2)
"""The learning rates that are tried at all."""
AROUND = 10.0
"""The space reaches so many times below and above what the prior suggests."""
GUESSES = 2
TRIALS = 36
MARGIN = 0.15
"""Of rule `behind`."""
CONFIRM, CONFIRM_TOP = 2, 2
FEWEST_TRIALS = 2


@dataclass(frozen=True)
class Chosen:
    """`notes`: what was chosen and why, for people."""

    experiment: Experiment
    notes: tuple[str, ...]


def open_settings(search: SearchSection) -> list[str]:
    """Which of them the experiment leaves open."""
    return [key for key in OPEN if key not in search.model_fields_set]


def kept(experiment: Experiment, earlier: Experiment) -> Experiment:
    """What is left open is as it was in an earlier run of the sweep."""
    settings = {key: getattr(earlier.search, key) for key in open_settings(experiment.search)}
    return _with(experiment, settings)


def chosen(
    experiment: Experiment,
    *,
    steps: int,
    records: Iterable[Record],
    budget: float | None = None,
) -> Chosen:
    """`steps`: of a trial. `budget`: of all steps, in whole trials; by default what `budget.steps`
    allows. Raises `ConfigError` for an impossible space."""
    search = experiment.search
    left = open_settings(search)
    prior = suggest(records, _question(experiment, steps), count=GUESSES)
    settings: dict[str, Any] = {}
    if "space" in left:
        settings["space"] = _space(prior)
    placed = _with(experiment, settings)
    if "enqueue" in left:
        settings["enqueue"] = _guesses(placed, prior)
    if budget is None and experiment.budget.steps is not None:
        budget = experiment.budget.steps / steps
    settings |= _spending(search, steps, budget)
    if "enqueue" in left:  # some room for what the prior does not know
        most = max(1, settings["trials"] // 2)
        settings["enqueue"] = settings["enqueue"][:most]
    settings = {key: value for key, value in settings.items() if key in left}
    return Chosen(
        _with(experiment, settings),
        tuple(_notes(settings, prior, steps, capped=budget is not None)),
    )


def _with(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    search = experiment.search.model_copy(update=dict(settings))
    return experiment.model_copy(update={"search": search})


# --- where ----------------------------------------------------------------------------------------


def _question(experiment: Experiment, steps: int) -> Question:
    space, base = experiment.search.space, experiment.model.base
    ranks: tuple[int, ...] = RANKS
    rates: tuple[float, ...] = ()
    if space:
        ranks = _listed(space.get(RANK, (experiment.lora.rank,)))
        rates = _listed(space.get(RATE, (experiment.optimizer.learning_rate,)))
    way = way_of({key: experiment.setting(key) for key in USUAL_WAY})
    return Question(base, experiment.train.step_rows, steps, ranks, rates, way)


def _listed(axis: Axis) -> tuple[Any, ...]:
    return () if isinstance(axis, AxisRange) else tuple(axis)


def _space(prior: Prior) -> dict[str, Axis]:
    low, high = RATES
    rates = [float(s.values[RATE]) for s in prior.suggestions]
    if rates and prior.in_range:
        lowest, highest = min(rates), max(rates)
        low = max(min(low, lowest / FACTOR), lowest / AROUND)  # a guess has room on both sides
        high = min(max(high, highest * FACTOR), highest * AROUND)
    return {RATE: AxisRange(low=low, high=high, log=True), RANK: RANKS}


def _guesses(experiment: Experiment, prior: Prior) -> tuple[dict[str, Any], ...]:
    """Those that stand in the space; of what the prior knows nothing about, the middle."""
    axes = experiment.search.space
    space = Space(experiment)
    found: list[dict[str, Any]] = []
    for suggestion in prior.suggestions:
        known = {key: value for key, value in suggestion.values.items() if key in axes}
        guess = space.completed(known) if known else None
        if guess is not None and guess not in found:
            found.append(guess)
    return tuple(found)


# --- how much -------------------------------------------------------------------------------------


def _spending(search: SearchSection, steps: int, budget: float | None) -> dict[str, Any]:
    """Half of the budget for the search, the other for the confirmation; all of it for the search
    where that half does not pay for two leaders."""
    confirm: Any = CONFIRM if budget is None else min(CONFIRM, int(budget / 2 / CONFIRM_TOP))
    if "confirm" in search.model_fields_set:
        confirm = search.confirm
    plan = _plan(search, steps, budget and budget / 2)
    if not confirm or plan.trials < FEWEST_TRIALS:
        confirm, plan = 0, _plan(search, steps, budget)
    return {
        "trials": plan.trials,
        "stopping": _stopping(plan, len(search.seeds)),
        "confirm": confirm,
        "confirm_top": CONFIRM_TOP,
    }


def _plan(search: SearchSection, steps: int, budget: float | None) -> Recipe:
    """`budget`: of the search, in whole trials."""
    if "trials" in search.model_fields_set and search.trials:
        return recipe(search.trials, steps)
    return recipe(TRIALS, steps, budget and budget / len(search.seeds))


def _stopping(plan: Recipe, seeds: int) -> StoppingSection:
    if plan.rung is None:
        return StoppingSection()
    return StoppingSection(
        rule=("topk", "behind"),
        first_rung=plan.rung,
        keep=plan.keep * seeds,
        every=math.ceil(plan.total_steps / 3),
        margin=MARGIN,
    )


# --- words ----------------------------------------------------------------------------------------


def _notes(settings: Mapping[str, Any], prior: Prior, steps: int, *, capped: bool) -> Iterable[str]:
    if "space" in settings:
        rates, ranks = settings["space"][RATE], settings["space"][RANK]
        span = f"{rates.low:g} to {rates.high:g}"
        yield f"learning rates {span}, ranks {', '.join(map(str, ranks))}"
    if settings.get("enqueue"):
        guesses = "; ".join(_told(guess) for guess in settings["enqueue"])
        yield f"first {guesses}: {prior.suggestions[0].reason}"
    if "enqueue" in settings and prior.doubts:
        doubts = "; ".join(prior.doubts)
        yield f"the prior may be wrong: {doubts}" if prior.suggestions else f"no guess: {doubts}"
    if "trials" in settings:
        yield (
            f"at most {settings['trials']} configurations of up to {steps} steps: after the first "
            "ones the neighbours of the best, until it has none left"
        )
    stopping = settings.get("stopping")
    if stopping and stopping.rules:
        yield (
            f"the best {stopping.keep} go on at step {stopping.first_rung}, until one is "
            f"{stopping.margin:.0%} worse than another was at step {stopping.every} or its double"
        )
    if settings.get("confirm"):
        top, seeds = settings.get("confirm_top", CONFIRM_TOP), settings["confirm"]
        fresh = "1 fresh seed" if seeds == 1 else f"{seeds} fresh seeds"
        yield f"the best {top} are trained again with {fresh}"
    elif "confirm" in settings and capped:
        yield (
            f"the budget does not pay for {CONFIRM_TOP} leaders with a fresh seed each, and one "
            "alone says nothing: all of it goes to the search"
        )


def _told(guess: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value:g}" for key, value in guess.items() if key in (RATE, RANK))
