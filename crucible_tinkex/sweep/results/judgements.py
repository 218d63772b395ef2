"""How much of alpha a verdict may spend, where a sweep is judged more than once on other values.

More seeds and more configurations are looked at for nothing, because they extend the sequences that
an interval holds for. Other values begin new ones: the fresh seeds of a confirmation after the
search's, another number of steps, another metric. Each alone would err with alpha, so they share it
(Bonferroni over a sequence that nobody knows beforehand: alpha spending, Foster and Stine 2008, doi
10.1111/j.1467-9868.2007.00643.x, without returns), and the whole life of a sweep declares a false
winner with alpha at most:

- what is declared first has `FIRST` of alpha, and what amendments ask for instead 1/2, 1/6, 1/12,
  ... of the rest, in their order; those before anything could be judged cost nothing;
- where a search has several seeds, so that it can be judged, and is to be confirmed, `FIRST` is the
  confirmation's, for which the search was only to find the leaders.

Simulated in `benchmarks.lives`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from crucible_tinkex.bench.selection.configurations import FIRST
from crucible_tinkex.registry import CONFIRM, DONE, SEARCH, SweepState

_OTHER_VALUES = frozenset(
    ("train.max_steps", "train.epochs", "search.metric", "search.direction", "search.at")
)


def judgement_share(state: SweepState) -> float:
    """Of alpha, for a verdict on the values that judge now: fresh ones as soon as two
    configurations have two (`bench.conclude`)."""
    search = state.meta["experiment"]["search"]
    later = [a for a in state.amendments if _begins_another(state, a)]
    confirms = bool(search.get("confirm")) or _is_confirmed(state)
    searches = len(search["seeds"]) > 1 or _is_judged(state, phases=(SEARCH,))
    if later:
        searches = searches and bool(_OTHER_VALUES.intersection(later[-1]["changed"]))
    part = (1 - FIRST) / (len(later) * (len(later) + 1)) if later else FIRST
    if not (confirms and searches):
        return part
    return part * (FIRST if _is_judged(state, phases=(CONFIRM,), states=(DONE,)) else 1 - FIRST)


def _begins_another(state: SweepState, amendment: Mapping[str, Any]) -> bool:
    """Whether other values judge from then on, where some could have judged before."""
    changed, before = amendment["changed"], amendment["trials"]
    is_other = bool(_OTHER_VALUES.intersection(changed))
    confirms = "search.confirm" in changed and not _is_confirmed(state, before)
    return (is_other or confirms) and _is_judged(state, before)


def _is_judged(
    state: SweepState,
    before: float = math.inf,
    *,
    phases: Collection[str] = (SEARCH, CONFIRM),
    states: Collection[str] = (),
) -> bool:
    """Whether, of the first so many trials, two configurations have two seeds each; of any states,
    if none are given."""
    trials = (t for t in state.trials.values() if t.index < before and t.phase in phases)
    counted = (t for t in trials if not t.reference and (not states or t.state in states))
    seeds = Counter(tuple(sorted(t.values.items())) for t in counted)
    return sum(n > 1 for n in seeds.values()) > 1


def _is_confirmed(state: SweepState, before: float = math.inf) -> bool:
    return any(t.phase == CONFIRM and t.index < before for t in state.trials.values())
