"""Conclusions in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crucible_tinkex.bench.power import MOST_SEEDS
from crucible_tinkex.bench.selection.configurations import Table
from crucible_tinkex.bench.selection.contest import Contest
from crucible_tinkex.bench.selection.results import Estimate, Forecast, Kind, Terms

_LISTED = 5


def verdict(
    kind: Kind,
    agreed: Terms,
    *,
    leader: str,
    tied: Sequence[str],
    take: str | None,
    cheaper: bool,
    competing: int,
    value: Estimate,
    more: Forecast | None,
) -> str:
    about = f" {value.about}" if value.unseen else ""
    worth = f"{agreed.metric} {value.value:.4g} ({value.low:.4g} to {value.high:.4g}){about}"
    if kind == "winner":
        others = "the other" if competing == 2 else f"all {competing - 1} others"
        return f"winner: {leader}, better than {others}; {worth}"
    among = f"{len(tied)} of {competing} are not separable ({_list(tied)})"
    if kind == "tie":
        if cheaper and take != leader:
            near = f"within {agreed.zone:g} of the best"
            return f"tie: {among}; take {take}, the cheapest that is {near}"
        return f"tie: {among}; take {take}: none is better by more than {agreed.zone:g}; {worth}"
    return f"not enough evidence: {among}; {leader} leads; {_more(more, agreed.cost_unit)}"


def _more(more: Forecast | None, unit: str) -> str:
    if more is None or more.seeds is None:
        return f"more seeds (up to {MOST_SEEDS}) would not settle it, as far as can be seen"
    cost = f", {more.cost:,.0f} {unit or 'of cost'}" if more.cost is not None else ""
    plural = "" if more.seeds == 1 else "s"
    return f"about {more.seeds} more seed{plural} ({more.runs} runs{cost}) would settle it"


def nothing(asked: int, measured: int, most_seeds: int, best: str | None) -> str:
    if not measured:
        return f"nothing can be said: none of {asked} configurations is complete and measured"
    if measured == 1:
        return f"nothing to compare: only {best} is complete"
    if most_seeds < 2:
        return (
            f"n = 1: nothing can be said of {measured} configurations with one seed each; "
            f"{best} is ahead, which may be luck"
        )
    return f"nothing can be said: only one of {measured} configurations has two seeds"


def notes(found: Table, result: Contest, control: str | None, zone: float) -> list[str]:
    """What a reader must know beside the verdict."""
    said = []
    if found.left_out:
        ones = (
            "1 configuration does"
            if len(found.left_out) == 1
            else (f"{len(found.left_out)} configurations do")
        )
        said.append(f"{ones} not compete; nothing is claimed of what was stopped, failed or unseen")
    same = (result.duels.lead == 0) & ~result.duels.itself & (result.duels.shared > 1)
    if not result.varies:
        said.append("the differences are the same with every seed: seeds do not act as repeats")
    elif same.any():
        names = [found.names[i] for i in np.flatnonzero(same)]
        said.append(f"{_list(names)} came out exactly as the leader did")
    told = result.duels.beaten & result.duels.within(zone)
    if told.any():
        names = [found.names[i] for i in np.flatnonzero(told)]
        said.append(
            f"{_list(names)}: told from the best, but by less than the {zone:g} that matter"
        )
    missing = int(np.isnan(found.values).any(axis=1).sum())
    if missing:
        have = "1 has" if missing == 1 else f"{missing} have"
        said.append(f"{have} fewer seeds than others; each pair is compared on shared ones")
    if control is not None and control not in found.names:
        said.append(f"the control {control} has too few seeds to be compared with")
    return said


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "; ".join(names[:_LISTED]) + more
