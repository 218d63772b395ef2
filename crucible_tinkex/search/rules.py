"""The stopping rule that an experiment declares."""

from __future__ import annotations

from crucible_tinkex.config import SearchSection
from crucible_tinkex.search.stopping import (
    AllOf,
    Behind,
    Divergence,
    Halving,
    Hyperband,
    Median,
    NoStopping,
    Plateau,
    Population,
    StoppingRule,
    Threshold,
    TopK,
)


def stopping_rule(search: SearchSection) -> StoppingRule:
    """One rule, or all that are named together."""
    rules = [_rule(name, search) for name in search.stopping.rules]
    if not rules:
        return NoStopping()
    return rules[0] if len(rules) == 1 else AllOf(rules)


def _rule(name: str, search: SearchSection) -> StoppingRule:
    asked = search.stopping
    first, every = asked.first_rung, asked.every
    sign = 1.0 if search.objective_direction == "min" else -1.0
    made: dict[str, StoppingRule] = {
        "halving": Halving(asked.eta, first),
        "hyperband": Hyperband(eta=asked.eta, first_rung=first, brackets=asked.brackets),
        "topk": TopK(asked.keep, first, asked.rungs),
        "median": Median(every, first, asked.startup),
        "behind": Behind(every, first, asked.margin),
        "population": Population(every, first),
        "plateau": Plateau(every, first, asked.patience, asked.min_delta),
        "threshold": Threshold(every, first, sign * (asked.threshold or 0.0)),
        "divergence": Divergence(every, first, asked.factor),
    }
    return made[name]
