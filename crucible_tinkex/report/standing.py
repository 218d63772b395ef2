"""Where each configuration stands by the conclusion: the best, as good as far as can be seen,
worse, or out of the contest; with the interval that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.bench import Conclusion
from crucible_tinkex.report.curves import rounded
from crucible_tinkex.sweep.results.leaderboard import Configuration

BEST, OPEN, WORSE, OUT = "best", "not separable", "worse", "does not compete"


def standings(
    found: Sequence[Configuration], names: Sequence[str], concluded: Conclusion
) -> dict[int, dict[str, Any]]:
    """By identity of the configuration. `low` and `high`: the always-valid interval of its distance
    to the leader, for all rivals together, laid from the leader's mean; null where nothing bounds
    it. `behind_by`: that distance."""
    means = {name: c.mean for name, c in zip(names, found, strict=True)}
    leader = means.get(concluded.leader or "")
    rivals = {rival.name: rival for rival in concluded.rivals}
    out = {one.name: one.reason for one in concluded.left_out}
    standing = {}
    for name, configuration in zip(names, found, strict=True):
        said: dict[str, Any] = {"name": name}
        if concluded.kind != "nothing" and name == concluded.leader:
            said["standing"] = BEST if concluded.kind == "winner" else OPEN
        elif rival := rivals.get(name):
            is_open = name in concluded.not_separable
            said |= {"standing": OPEN if is_open else WORSE, "behind_by": rounded(rival.behind_by)}
            said |= _laid(leader, rival.low, rival.high, concluded.terms.sign)
        else:
            said |= {"standing": OUT, "why": out.get(name)}
        standing[id(configuration)] = said
    return standing


def _laid(leader: float | None, low: float, high: float, sign: float) -> Mapping[str, float | None]:
    """How much worse, as values of the metric."""
    if leader is None or not all(map(math.isfinite, (leader, low, high))):
        return {"low": None, "high": None}
    ends = sorted(leader - sign * end for end in (low, high))
    return {"low": rounded(ends[0]), "high": rounded(ends[1])}
