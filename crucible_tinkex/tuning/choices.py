"""What `tune` chooses, and why: a pure function of what is known of data, service and budget.

The figures are rules of thumb that keep a first sweep short: a person who knows better edits the
experiment file that `tune` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.datasets import LengthStatistics
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.sweep.deciding.proposing.confirming import FIRST_SEEDS

FEWEST_ROWS = 5
MOST_HELD_OUT = 500
STEPS, MOST_EPOCHS = 100, 10
"""An epoch, but at least so many steps, unless that shows a row more often than so."""
MOST_STEPS = {True: 200, False: 1000}
"""By whether the service is the embedded one, which computes on this machine."""
LONGEST = {True: 512, False: 4096}
BATCH = 8
MOST_BATCH = {True: 16, False: 64}
SHORT_ANSWER = 16
"""Learnt tokens of a row up to which answers are generated and compared."""
SHARE = 0.7
"""Of a budget, what is planned; the rest is for evaluations, checkpoints and starts."""
LEADERS, MOST_SEEDS = 2, 8
"""Confirmed at the end, and fresh seeds of each at most."""
ALONE = 2
"""Trials that the winner runs alone afterwards."""
FEWEST_TRIALS = 6.0
"""Whole trials that a budget should pay for: half of it searches, half confirms."""


@dataclass(frozen=True)
class Facts:
    """What is known once data and service have been looked at. Lengths in tokens."""

    lengths: LengthStatistics
    """Of all training rows, uncut."""
    format: str
    has_eval: bool
    embedded: bool
    context: int | None = None
    """Longest row that the base takes."""
    tokens_per_s: float | None = None
    """That the service trains on; None: not known."""
    dollars_per_token: float | None = None
    """None: the price is not known."""


@dataclass(frozen=True)
class Choices:
    """`settings`: dotted keys of an experiment. `trials`: whole trials that the budget pays for."""

    settings: Mapping[str, Any]
    reasons: tuple[str, ...]
    steps: int
    trials: float | None = field(default=None)


def choose(facts: Facts, budget: Mapping[str, Any]) -> Choices:
    """`budget`: of `parse_budget`. Raises `ConfigError` where the data are too few, or the budget
    pays for nothing."""
    rows = facts.lengths.rows
    if rows < FEWEST_ROWS:
        raise ConfigError(f"{rows} rows are too few to tune on; give at least {FEWEST_ROWS}")
    reasons: list[str] = []
    settings: dict[str, Any] = {"data.too_long": "truncate"}
    if not facts.has_eval:
        settings |= _held_out(rows, reasons)
        rows -= math.ceil(rows * settings.get("data.eval_fraction", 0)) or settings.get(
            "data.eval_rows", 0
        )
    settings["train.max_length"] = _length(facts, reasons)
    settings["train.batch_size"] = batch = _batch(rows, embedded=facts.embedded)
    allowed = _steps_allowed(facts, budget, batch)
    steps = _steps(rows, batch, allowed, embedded=facts.embedded)
    settings["train.max_steps"] = steps
    reasons.append(
        f"{steps} steps of {batch} rows a trial ({steps * batch / rows:.2g} times each of {rows} "
        f"rows)"
    )
    answer = facts.lengths.learnt / facts.lengths.rows
    settings["evaluation.generate"] = answer <= SHORT_ANSWER
    if settings["evaluation.generate"]:
        reasons.append(
            f"answers are short ({answer:.2g} tokens), so their accuracy is measured too"
        )
    reasons += _on_budget(facts, budget, allowed)
    trials = None if allowed is None else allowed / steps
    if "budget.trials" in budget:
        trials = min(trained(budget["budget.trials"]), trials or math.inf)
        settings["search.trials"] = searching(budget["budget.trials"])
    settings |= (confirmed := confirmation(trials))
    if confirmed:
        reasons.append(
            f"the best {LEADERS} are trained again with {FIRST_SEEDS} to "
            f"{confirmed['search.confirm_max_seeds']} fresh seeds each, until the best is told"
        )
    if facts.dollars_per_token is None and not facts.embedded:
        reasons.append("no price is known: what it costs is not counted (--prices gives a table)")
    return Choices(settings, tuple(reasons), steps, trials)


def _held_out(rows: int, reasons: list[str]) -> dict[str, Any]:
    if rows < 50:
        count = max(1, rows // 5)
        reasons.append(f"{count} of {rows} rows are held out, as no --eval is given")
        return {"data.eval_rows": count}
    fraction = 0.2 if rows < 250 else min(0.1, round(MOST_HELD_OUT / rows, 6))
    reasons.append(
        f"about {fraction * rows:.0f} of {rows} rows are held out, as no --eval is given"
    )
    return {"data.eval_fraction": fraction}


def _length(facts: Facts, reasons: list[str]) -> int:
    """The longest row, or where that is far from the others, their 99th percentile."""
    found = facts.lengths
    most = min(LONGEST[facts.embedded], facts.context or LONGEST[facts.embedded])
    wished = found.longest if found.longest <= 2 * found.p99 else found.p99
    length = max(2, min(most, wished))
    if length >= found.longest:
        reasons.append(f"rows are up to {length} tokens long, and none is cut")
    else:
        reasons.append(
            f"rows are cut at {length} tokens: 99 of 100 have at most {found.p99}, the longest "
            f"{found.longest}"
        )
    return length


def _batch(rows: int, *, embedded: bool) -> int:
    """A power of two, so that an epoch has 32 steps or more; at least 8 where there are so many
    rows, as smaller ones are noisy and far from what earlier sweeps used."""
    wished = min(rows, max(BATCH, min(MOST_BATCH[embedded], rows // 32)))
    return int(2 ** math.floor(math.log2(wished)))


def _steps(rows: int, batch: int, allowed: float | None, *, embedded: bool) -> int:
    most = min(max(1, MOST_EPOCHS * rows // batch), MOST_STEPS[embedded])
    steps = min(max(math.ceil(rows / batch), STEPS), most)
    return steps if allowed is None else max(1, min(steps, int(allowed / FEWEST_TRIALS)))


def searching(trials: int) -> int:
    """Half of so many trials; the others confirm. All where half does not pay for two leaders."""
    found = trained(trials)
    return math.ceil(found / 2 if found >= 2 * LEADERS else found)


def trained(trials: int) -> float:
    """Of so many trials, those that are trained: one is the untrained base. Raises `ConfigError`
    where none is left."""
    if trials < 2:
        raise ConfigError("a budget of 1 trial pays for the untrained base alone; give more")
    return trials - 1.0


def confirmation(trials: float | None) -> Mapping[str, Any]:
    """Until the best is told, if half of the budget pays for the seeds that this needs at least;
    else nothing: what strategy `auto` chooses. `trials`: whole ones that the budget pays for;
    None: any."""
    most = MOST_SEEDS if trials is None else int((trials / 2 - ALONE) / LEADERS)
    if most < FIRST_SEEDS:
        return {}
    return {
        "search.confirm": "auto",
        "search.confirm_top": LEADERS,
        "search.confirm_max_seeds": min(most, MOST_SEEDS),
    }


def _steps_allowed(facts: Facts, budget: Mapping[str, Any], batch: int) -> float | None:
    """Steps of all trials together that the budget pays for; None: not known, or no end."""
    tokens_per_step = batch * facts.lengths.tokens / facts.lengths.rows
    speed, price = facts.tokens_per_s, facts.dollars_per_token
    steps_per_unit = {
        "budget.steps": 1.0,
        "budget.tokens": 1 / tokens_per_step,
        "budget.hours": speed * 3600 / tokens_per_step if speed else None,
        "budget.dollars": 1 / (price * tokens_per_step) if price else None,
    }
    found = [
        SHARE * amount * per
        for key, amount in budget.items()
        if (per := steps_per_unit.get(key)) is not None
    ]
    if found and min(found) < 1:
        raise ConfigError("the budget does not pay for a single step; give more")
    return min(found, default=None)


def _on_budget(facts: Facts, budget: Mapping[str, Any], allowed: float | None) -> Iterator[str]:
    if "budget.hours" in budget and facts.tokens_per_s:
        yield f"the service trains on about {facts.tokens_per_s:,.0f} tokens a second"
    if allowed is not None:
        share = f"{SHARE:.0%} of what the budget pays for"
        yield f"about {allowed:,.0f} steps in all are planned, {share}"
    elif "budget.trials" in budget:
        of = "half" if trained(budget["budget.trials"]) >= 2 * LEADERS else "all"
        yield f"one trial of the budget is the untrained base; {of} of the others search"
    elif "budget.dollars" in budget and facts.embedded:
        yield "the embedded server costs nothing, so a budget in dollars has no end"
    elif budget:
        yield "how far the budget goes is not known; it is a cap all the same"
